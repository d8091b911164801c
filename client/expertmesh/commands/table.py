"""Every command of `expertmesh`: those of this package, and those that come with the server's.

A command is two modules of one package: one has add_arguments(parser), the other run(args) -> exit code. The
first imports nothing heavy and is all that `--help`, a wrong argument and a completion load; the second is
loaded when there is something to run. They are one where the whole command is light.
"""

from typing import NamedTuple

# A dotted name that is only loaded: this package imports nothing of the server's.
CLIENT, SERVER = "expertmesh.commands", "coordinator.commands"
SERVER_DISTRIBUTION = "expertmesh"


class Entry(NamedTuple):
    """The modules of a command's arguments and of what it does, and what its help says.

    `starts_ray`: its start takes seconds, so it says what it is doing; and it hears signals on a thread.
    """

    arguments: str
    runs: str
    help: str
    package: str = SERVER
    starts_ray: bool = False

    @property
    def needs_server(self) -> bool:
        return self.package == SERVER


COMMANDS = {
    "serve": Entry(
        *("serve_arguments", "serve", "serve a checkpoint with Ray expert workers over gRPC and HTTP"),
        starts_ray=True,
    ),
    "generate": Entry(
        *("generate_arguments", "generate", "generate from a checkpoint without a server"), starts_ray=True
    ),
    "demo": Entry(
        *("demo_arguments", "demo", "start everything, stream one generation, stop everything"),
        starts_ray=True,
    ),
    "head": Entry("head_arguments", "head", "make this machine the head of a cluster", starts_ray=True),
    "join": Entry("join_arguments", "join", "make this machine a node of a cluster", starts_ray=True),
    "leave": Entry(
        "leave_arguments", "leave", "empty the workers of this machine, which is about to go", starts_ray=True
    ),
    "doctor": Entry(
        *("doctor_arguments", "doctor", "say what of this machine, or of a cluster, would go wrong"),
        starts_ray=True,
    ),
    "client": Entry("client_arguments", "client", "stream a generation from a server", CLIENT),
    "health": Entry("health_arguments", "health", "say whether a server can serve, by the exit code", CLIENT),
    "top": Entry("top_arguments", "top", "show a server's load, workers, experts and rates, live", CLIENT),
    "scale": Entry(
        "scale_arguments", "scale", "change the number of a server's workers, while it serves", CLIENT
    ),
    "experts": Entry(
        *("experts_arguments", "experts", "list, exchange, add and retire experts of a running server"),
        package=CLIENT,
    ),
    "keys": Entry("keys", "keys", "make API keys"),
    "bench": Entry("bench", "bench", "measure this machine: engine, service, dispatch, other systems"),
    "sweep": Entry(
        "sweep_arguments", "sweep", "measure how a model scales: all cells of an experiment, in rounds"
    ),
    "probe": Entry(
        *("probe_arguments", "probe", "measure machines and the network between them, for plans"),
        starts_ray=False,
    ),
    "plan": Entry(
        "plan_arguments", "plan", "say which experts to hold on which machines, with how many copies"
    ),
    "simulate": Entry(
        "simulate_arguments", "simulate", "simulate a model on machines: rates, waits, and what binds"
    ),
    "trace": Entry(
        "trace_arguments", "trace", "say what a recorded routing means for load; plot and convert it"
    ),
    "chaos": Entry("chaos", "chaos", "break workers of a live server under load, report what was lost"),
    "import": Entry(
        "import_arguments",
        "import_checkpoint",
        "turn files of ModularForge or Hugging Face into a checkpoint",
    ),
    "export": Entry("export_arguments", "export_checkpoint", "turn a checkpoint into a Hugging Face folder"),
    "inspect": Entry("inspect_arguments", "inspect_checkpoint", "show what a checkpoint holds, verify it"),
    "sums": Entry("sums_arguments", "sums", "write the sums of a folder's blocks, for those who fetch it"),
    "init": Entry("init_arguments", "init_checkpoint", "write a randomly initialised checkpoint"),
    "completion": Entry(
        "completion_arguments", "completion", "teach a shell to complete this command", CLIENT
    ),
}
