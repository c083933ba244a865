"""Keys and values as codes, inside a kernel: the rule of `kernels/reference/kv_codes`, bit for bit.

A value is scale · code; the scale is bfloat16, of one token's key or value in one head. FP8 (e4m3)
codes are written, and read on cards that have no instruction for it, from their bits.
"""

# Kernels have types of their own.
# mypy: disable-error-code="no-untyped-def,untyped-decorator"
import triton
import triton.language as tl

# How elements of a cache are stored.
FLOATS = 0
INT8 = 1
FP8_BITS = 2
FP8_NATIVE = 3

_INT8 = tl.constexpr(INT8)
_FP8_BITS = tl.constexpr(FP8_BITS)
_FP8_NATIVE = tl.constexpr(FP8_NATIVE)
_LEAST = tl.constexpr(1e-30)  # what is smaller all over is zero
_INT8_LARGEST = tl.constexpr(127.0)
_FP8_LARGEST = tl.constexpr(448.0)
_FP8_LARGEST_CODE = tl.constexpr(0x7E)
_LEAST_NORMAL = tl.constexpr(2.0**-6)
_STEPS = tl.constexpr(512.0)  # an e4m3 number that is not normal is a multiple of its inverse
_EXPONENT_SHIFT = tl.constexpr((127 - 7) << 3)  # between float32 and e4m3, behind 3 bits
# Added and taken away again it leaves a whole number, ties to even: the last bit of a float32
# between 2^23 and 2^24 is 1.
_WHOLE = tl.constexpr(1.5 * 2.0**23)


@triton.jit
def numbers_of(raw, element: tl.constexpr, CODES: tl.constexpr):
    """Elements as they are stored → floats of type `element`; every code is exact in 16 bits."""
    if CODES == _INT8:
        return raw.to(tl.float32).to(element)
    elif CODES == _FP8_NATIVE:
        return raw.to(tl.float8e4nv, bitcast=True).to(tl.float16).to(tl.float32).to(element)
    elif CODES == _FP8_BITS:
        # Exponent and fraction at the place of float16's, whose bias is 8 more.
        bits = raw.to(tl.int16)
        half = ((bits & 0x80) << 8) | ((bits & 0x7F) << 7)
        return (half.to(tl.float16, bitcast=True).to(tl.float32) * 256.0).to(element)
    else:
        return raw.to(element)


@triton.jit
def scale_of(largest, is_finite, CODES: tl.constexpr):
    """The scale of heads whose largest magnitude is given: (to divide by, to store, is plain).

    Where values are not finite the stored scale is NaN, where all are (nearly) zero it is 0; codes
    are 0 there.
    """
    is_plain = is_finite & (largest >= _LEAST)
    most = _INT8_LARGEST if CODES == _INT8 else _FP8_LARGEST
    scale = tl.div_rn(tl.where(is_plain, largest, 1.0), tl.full(largest.shape, most, tl.float32))
    scale = scale.to(tl.bfloat16).to(tl.float32)
    stored = tl.where(is_plain, scale, tl.where(is_finite, 0.0, float("nan")))
    return scale, stored, is_plain


@triton.jit
def codes_of(x, scale, is_plain, CODES: tl.constexpr):
    """Codes of x [heads, n] by scales [heads]: x / scale to the nearest, ties to even."""
    inverse = tl.div_rn(tl.full(scale.shape, 1.0, tl.float32), scale)
    scaled = x * inverse[:, None]
    scaled = tl.where(is_plain[:, None], scaled, 0.0)
    if CODES == _INT8:
        whole = (scaled + _WHOLE) - _WHOLE
        return tl.minimum(tl.maximum(whole, -_INT8_LARGEST), _INT8_LARGEST).to(tl.int8)
    else:
        return _e4m3(scaled)


@triton.jit
def _e4m3(x):
    """The nearest e4m3 numbers' codes; of what is larger than 448, that of 448."""
    bits = x.to(tl.int32, bitcast=True)
    size = bits & 0x7FFFFFFF
    odd = (size >> 20) & 1
    normal = ((size + 0x7FFFF + odd) >> 20) - _EXPONENT_SHIFT
    normal = tl.minimum(normal, _FP8_LARGEST_CODE)
    magnitude = tl.abs(x)
    small = ((tl.minimum(magnitude, _LEAST_NORMAL) * _STEPS + _WHOLE) - _WHOLE).to(tl.int32)
    code = tl.where(magnitude < _LEAST_NORMAL, small, normal)
    return (code | ((bits >> 24) & 0x80)).to(tl.uint8)
