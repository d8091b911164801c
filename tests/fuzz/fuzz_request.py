"""Coverage-guided fuzzing of what a stranger's bytes meet first: decoding and validation. `make fuzz`.

Anything but a valid request or an error that is the client's own is a bug.
"""

import sys

import atheris
from google.protobuf.message import DecodeError

with atheris.instrument_imports(include=["coordinator.api"]):
    from coordinator.api.shared.errors import ApiError, Code
    from coordinator.api.text.chat_template import ChatTemplate
    from coordinator.api.validation.request import resolve
    from expertmesh.v1 import generation_pb2 as pb
    from tests.coordinator.api.fakes import served_model

CLIENTS_OWN = {Code.INVALID_ARGUMENT, Code.UNIMPLEMENTED, Code.NOT_FOUND, Code.FAILED_PRECONDITION}
MODEL = served_model(chat_template=ChatTemplate("{% for m in messages %}{{ m.content }}{% endfor %}"))


def check_request(data: bytes) -> None:
    try:
        message = pb.GenerateRequest.FromString(data)
    except (DecodeError, UnicodeDecodeError):
        return
    try:
        valid = resolve(message, MODEL, "id", 0.0)
    except ApiError as error:
        if error.code not in CLIENTS_OWN or "\n" in error.message:
            raise
        return
    assert valid.request.prompt_ids
    assert max(valid.request.prompt_ids) < MODEL.config.vocab_size


def main() -> None:
    atheris.Setup(sys.argv, check_request)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
