"""What a sequence says, thinks and calls, as deltas: the joint between a model's text and typed messages."""

from collections.abc import Iterator, Sequence
from secrets import choice
from string import ascii_letters, digits

from coordinator.api.text.text_stream import TextStream
from coordinator.engine.messages.output import TextMatch
from coordinator.tools.output_reader import OutputForm, OutputReader
from coordinator.tools.pieces import Arguments, CallBegun, Piece, Said, Thought
from expertmesh.v1 import generation_pb2 as pb

_ID_LENGTH = 24


class OutputParts:
    """Of one sequence. `num_calls` and `num_thinking` are of calls and of tokens of thoughts so far."""

    def __init__(self, text: TextStream, form: OutputForm) -> None:
        self.num_calls = 0
        self.num_thinking = 0
        self._text = text
        self._reader = OutputReader(form)
        self._id_length = form.calls.id_length if form.calls is not None else 0
        # One by one, tokens are counted where they belong.
        self._one_by_one = form.thoughts is not None

    def push(self, token_ids: Sequence[int]) -> list[Piece]:
        """What the new tokens make certain."""
        if not self._one_by_one:
            return self._reader.push(self._text.push(token_ids))
        found: list[Piece] = []
        for token_id in token_ids:
            self.num_thinking += self._reader.is_thinking
            found += self._reader.push(self._text.push((token_id,)))
        return found

    def finish(self, token_ids: Sequence[int], stop: TextMatch | None) -> list[Piece]:
        """Takes the last tokens; a stop sequence is cut off the end of all that there is."""
        if stop is None:
            found = self.push(token_ids)
            return [*found, *self._reader.finish(self._text.finish(()))]
        self.num_thinking += len(token_ids) if self._reader.is_thinking else 0
        return self._reader.finish(self._text.finish(token_ids, stop))

    def deltas(self, index: int, pieces: Sequence[Piece]) -> Iterator[pb.SequenceDelta]:
        """A message holds a thought, text and calls in this order; for another order there are more."""
        delta, rank = pb.SequenceDelta(index=index), 0
        for piece in pieces:
            if _RANKS[type(piece)] < rank:
                yield delta
                delta = pb.SequenceDelta(index=index)
            rank = _RANKS[type(piece)]
            match piece:
                case Thought(text):
                    delta.reasoning += text
                case Said(text):
                    delta.text += text
                case CallBegun(name):
                    delta.tool_calls.add(index=self.num_calls, id=self._new_id(), name=name)
                    self.num_calls += 1
                case Arguments(text):
                    self._more(delta).arguments += text
        yield delta

    def _more(self, delta: pb.SequenceDelta) -> pb.ToolCallDelta:
        """Where more of the last call's arguments go."""
        number = self.num_calls - 1
        if delta.tool_calls and delta.tool_calls[-1].index == number:
            return delta.tool_calls[-1]
        return delta.tool_calls.add(index=number)

    def _new_id(self) -> str:
        """Unlike any other. Some templates take none but ids of their own length."""
        if self._id_length:
            return _random(self._id_length)
        return f"call_{_random(_ID_LENGTH)}"


_RANKS: dict[type[Piece], int] = {Thought: 0, Said: 1, CallBegun: 2, Arguments: 2}


def _random(length: int) -> str:
    return "".join(choice(ascii_letters + digits) for _ in range(length))
