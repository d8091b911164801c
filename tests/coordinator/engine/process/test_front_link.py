"""FrontLink: in which order a front hears what was not taken at once; the socket is in the test's hand."""

from coordinator.engine.messages.output import Output
from coordinator.engine.messages.process import Beat, StepOutputs
from coordinator.engine.messages.stats import EngineStats
from coordinator.engine.process.channel import Channel
from coordinator.engine.process.frames import FrameReader, frame_of
from coordinator.engine.process.front_link import FrontLink, Said


class HeldChannel(Channel):
    """Takes everything; `num_unsent` is what the test says."""

    num_unsent = 0

    def __init__(self) -> None:
        self.said: list[object] = []

    def send(self, frame: bytes) -> None:
        self.said += FrameReader().feed(memoryview(frame))


class Engine:
    def __init__(self) -> None:
        self.stats = EngineStats()
        self.link = FrontLink(3, lambda: self.stats)
        self.channel = self.link.channel = HeldChannel()

    def say(self, *outputs: Output) -> list[int]:
        said = Said()
        for output in outputs:
            said.add(7, output)
        return self.link.say(said)


def test_what_waits_stays_before_what_comes_though_the_socket_has_room_again() -> None:
    """Between the moment when all was sent and the one when the backlog is looked at."""
    engine = Engine()
    engine.channel.num_unsent = 5
    engine.say(Output("", (1,)))
    engine.channel.num_unsent = 0
    engine.say(Output("", (2,)))
    assert engine.channel.said == []
    assert not engine.link.catch_up()
    assert engine.channel.said == [StepOutputs(others=((7, Output("", (1, 2))),), stats=engine.stats)]
    engine.say(Output("", (3,)))
    assert engine.channel.said[1:] == [StepOutputs(((7, 0, 3),))]


def test_while_the_socket_is_full_nothing_is_sent() -> None:
    engine = Engine()
    engine.channel.num_unsent = 5
    engine.say(Output("", (1,)))
    assert not engine.link.catch_up()
    engine.link.tell([frame_of(Beat())])
    assert engine.channel.said == []
    engine.channel.num_unsent = 0
    assert engine.link.catch_up(), "it has missed news"
    assert not engine.link.catch_up(), "it is told of that once"


def test_stats_come_with_outputs_where_they_have_changed() -> None:
    engine = Engine()
    for stats in (EngineStats(num_steps=1), EngineStats(num_steps=2)):
        engine.stats = stats
        engine.say(Output("", (1,)))
        engine.say(Output("", (1,)))
    tokens = ((7, 0, 1),)
    assert engine.channel.said == [
        StepOutputs(tokens, stats=EngineStats(num_steps=1)),
        StepOutputs(tokens),
        StepOutputs(tokens, stats=EngineStats(num_steps=2)),
        StepOutputs(tokens),
    ]


def test_a_trace_s_number_is_its_front_s_alone() -> None:
    assert Engine().link.marked(None) is None
    assert Engine().link.marked(5) == 3 << 40 | 5
