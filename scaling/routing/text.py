"""A summary of a routing trace, for people."""

from collections.abc import Iterator, Sequence

from scaling.routing.summary import COPIES, Pair, Summary


def lines(found: Summary) -> Iterator[str]:
    """A line each."""
    yield f"{found.name}, checkpoint {found.model[:12]}"
    yield (
        f"{found.num_tokens} tokens, {found.num_layers} layers with experts, "
        f"{found.top_k} of {found.num_experts} experts each"
    )
    if found.is_cut:
        yield "the last block is not whole: the server was killed as it wrote it"
    if not found.num_tokens:
        yield "no rows: no request was served while it was recorded"
        return
    yield ""
    yield "layer  max/mean  largest share  half of rows  unused  evenness  " + "  ".join(
        f"+{number:<2} copies" if number == COPIES[0] else f"+{number:<3}" for number in COPIES
    )
    for layer in found.layers:
        copies = [f"{layer.with_copies.get(number, 1.0):.2f}" for number in COPIES]
        yield (
            f"{layer.layer:5d}  {layer.max_over_mean:8.2f}  {layer.max_share:12.1%}  "
            f"{layer.experts_for_half:4d} experts  {layer.unused:6d}  {layer.evenness:8.3f}  "
            f"{copies[0]:>10}  " + "  ".join(f"{each:<4}" for each in copies[1:])
        )
    yield "copies: max/mean with so many further copies in each layer, of the experts with the most rows"
    yield ""
    if found.drift:
        yield (
            f"drift of {len(found.drift)} windows of {found.window_tokens} tokens: mean "
            f"{sum(found.drift) / len(found.drift):.3f}, largest {max(found.drift):.3f}, "
            f"by chance alone {found.drift_by_chance:.3f} (total variation to the whole)"
        )
    else:
        yield "drift: too few tokens for windows"
    yield from _pairs("together in a layer", found.within, "of all rows")
    yield from _pairs("from a layer to the next", found.between, "of the first one's rows")


def _pairs(what: str, pairs: Sequence[Pair], of: str) -> Iterator[str]:
    for pair in pairs:
        yield (
            f"{what}: layer {pair.layer}, experts {pair.first} and {pair.second}: {pair.share:.1%} {of}, "
            f"{pair.lift:.1f} times as often as by chance"
        )
