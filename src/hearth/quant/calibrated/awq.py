"""AWQ."""

from hearth.quant.calibrated.layer import LayerWork


def quantize_by_awq(work: LayerWork) -> None:
    """Later."""
    raise NotImplementedError
