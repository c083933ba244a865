// Packing of row-major weights into the layouts of kernels/packing.py, and random filling.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <new>
#include <type_traits>
#include <vector>

#include "hearth.h"
#include "kernels.h"
#include "model.h"
#include "quant.h"

namespace hearth {
namespace {

constexpr int kMaxGroup = 1024;

// Element types by their bits: float, bfloat16 and IEEE half as unsigned 16-bit words.
struct F32 {
  using Bits = float;
  static float load(float x) { return x; }
  static float store(float x) { return x; }
};
struct Bf16 {
  using Bits = uint16_t;
  static float load(uint16_t h) {
    uint32_t bits = static_cast<uint32_t>(h) << 16;
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
  }
  static uint16_t store(float x) {  // nearest even; NaN stays NaN
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40);
    return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16);
  }
};
struct F16 {
  using Bits = uint16_t;
  static float load(uint16_t h) {
    uint32_t sign = static_cast<uint32_t>(h & 0x8000) << 16, exponent = (h >> 10) & 31,
             fraction = h & 1023;
    if (exponent == 0) {  // zero or subnormal: fraction · 2^−24
      float x = std::ldexp(static_cast<float>(fraction), -24);
      return sign ? -x : x;
    }
    uint32_t bits = sign | (exponent == 31 ? 0x7f800000u : (exponent + 112) << 23) | fraction << 13;
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
  }
  // Nearest even; beyond the largest half infinity, NaN stays NaN.
  static uint16_t store(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    uint32_t sign = bits >> 16 & 0x8000u, size = bits & 0x7fffffffu;
    if (size > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
    if (size >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);
    if (size < 0x38800000u) {  // below the least normal one: units of 2^−24
      float magnitude;
      std::memcpy(&magnitude, &size, 4);
      return static_cast<uint16_t>(sign |
                                   static_cast<uint32_t>(std::nearbyint(magnitude * 0x1p24f)));
    }
    size += 0xfffu + (size >> 13 & 1);
    return static_cast<uint16_t>(sign | ((size - 0x38000000u) >> 13));
  }
};

struct Shape {
  int kind;
  int64_t rows, cols, first_row, num_rows;
};

int64_t padded_cols(int64_t cols) {
  return (cols + 15) / 16 * 16;
}

template <class Dst, class Src>
typename Dst::Bits convert(typename Src::Bits x) {
  if constexpr (std::is_same_v<Dst, Src>)
    return x;
  else
    return Dst::store(Src::load(x));
}

// 64 columns of K at a time: the part of the panel that is written then stays in the first cache.
template <class Dst, class Src>
void pack_linear(typename Dst::Bits* dst, const typename Src::Bits* src, const Shape& s) {
  for (int64_t row = s.first_row; row < s.first_row + s.num_rows;) {
    int64_t panel = row / kPanel, last = std::min((panel + 1) * kPanel, s.first_row + s.num_rows);
    typename Dst::Bits* out = dst + panel * kPanel * s.cols;
    for (int64_t k0 = 0; k0 < s.cols; k0 += 64) {
      int64_t k1 = std::min(s.cols, k0 + 64);
      for (int64_t r = row; r < last; r++) {
        const typename Src::Bits* in = src + (r - s.first_row) * s.cols;
        for (int64_t k = k0; k < k1; k++) out[k * kPanel + r % kPanel] = convert<Dst, Src>(in[k]);
      }
    }
    row = last;
  }
}

template <class Dst, class Src>
void pack_as(void* dst_data, const void* src_data, const Shape& s) {
  auto* dst = static_cast<typename Dst::Bits*>(dst_data);
  auto* src = static_cast<const typename Src::Bits*>(src_data);
  if (s.kind == HEARTH_LINEAR) return pack_linear<Dst, Src>(dst, src, s);
  int64_t stride = s.kind == HEARTH_TABLE ? padded_cols(s.cols) : s.cols;
  for (int64_t r = 0; r < s.num_rows; r++)
    for (int64_t k = 0; k < s.cols; k++)
      dst[(s.first_row + r) * stride + k] = convert<Dst, Src>(src[r * s.cols + k]);
}

template <class Dst>
bool pack_from(void* dst, const void* src, int src_dtype, const Shape& s) {
  if (src_dtype == HEARTH_F32)
    pack_as<Dst, F32>(dst, src, s);
  else if (src_dtype == HEARTH_BF16)
    pack_as<Dst, Bf16>(dst, src, s);
  else if (src_dtype == HEARTH_F16)
    pack_as<Dst, F16>(dst, src, s);
  else
    return false;
  return true;
}

bool valid(const Shape& s) {
  bool kind =
      s.kind == HEARTH_LINEAR || s.kind == HEARTH_TABLE || (s.kind == HEARTH_VECTOR && s.cols == 1);
  return kind && s.cols > 0 && s.first_row >= 0 && s.num_rows >= 0 &&
         s.first_row + s.num_rows <= s.rows;
}

// SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), finalizer only.
uint64_t mix(uint64_t z) {
  z += 0x9E3779B97F4A7C15ull;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  return z ^ (z >> 31);
}

struct Random {
  uint64_t seed;
  float base, amplitude;

  uint64_t row_key(int64_t row) const { return mix(seed ^ mix(static_cast<uint64_t>(row))); }
  float at(uint64_t row_key, int64_t k) const {
    uint64_t word = mix(row_key + static_cast<uint64_t>(k));
    return base + amplitude * (static_cast<float>(static_cast<int32_t>(word >> 32)) * 0x1p-31f);
  }
};

template <class Dst>
void fill_panel_rows(typename Dst::Bits* dst, const Shape& s, const Random& random) {
  int64_t end = s.first_row + s.num_rows;
  for (int64_t row = s.first_row; row < end;) {
    int64_t panel = row / kPanel, last = std::min((panel + 1) * kPanel, end);
    uint64_t keys[kPanel];
    for (int64_t r = row; r < last; r++) keys[r - row] = random.row_key(r);
    typename Dst::Bits* out = dst + panel * kPanel * s.cols + row % kPanel;
    for (int64_t k = 0; k < s.cols; k++, out += kPanel)
      for (int64_t r = 0; r < last - row; r++) out[r] = Dst::store(random.at(keys[r], k));
    row = last;
  }
}

template <class Dst>
void fill_as(typename Dst::Bits* dst, const Shape& s, const Random& random) {
  if (s.kind == HEARTH_LINEAR) return fill_panel_rows<Dst>(dst, s, random);
  int64_t stride = s.kind == HEARTH_TABLE ? padded_cols(s.cols) : s.cols;
  for (int64_t row = s.first_row; row < s.first_row + s.num_rows; row++) {
    uint64_t key = random.row_key(row);
    for (int64_t k = 0; k < s.cols; k++) dst[row * stride + k] = Dst::store(random.at(key, k));
  }
}

// Codes of one group of a row, as they are packed.
struct GroupCodes {
  const uint8_t* codes;  // [group]
  float scale;
  uint8_t zero;
};

// Spreads the codes of a quantized weight over its panels, or lays them into its table.
struct CodesPacker {
  const hearth_layout& w;
  uint8_t* dst;

  void put(int64_t row, int64_t g, const GroupCodes& group) const {
    w.kind == HEARTH_TABLE ? put_in_table(row, g, group) : put_in_panel(row, g, group);
  }

 private:
  void put_scale(uint8_t* to, float scale) const {
    if (w.wide) {
      std::memcpy(to, &scale, 4);
      return;
    }
    uint16_t half = Bf16::store(scale);
    std::memcpy(to, &half, 2);
  }

  void put_in_table(int64_t row, int64_t g, const GroupCodes& group) const {
    uint8_t* bytes = dst + row * table_row_bytes(w);
    std::memcpy(bytes + g * w.group, group.codes, static_cast<size_t>(w.group));
    put_scale(bytes + num_groups(w.cols, w.group) * w.group + g * scale_bytes(w), group.scale);
  }

  void put_in_panel(int64_t row, int64_t g, const GroupCodes& group) const {
    int64_t column = row % kPanel;
    uint8_t* block = dst + row / kPanel * quant_panel_bytes(w) + g * group_block_bytes(w);
    put_scale(block + column * scale_bytes(w), group.scale);
    if (w.zeros) block[kPanel * scale_bytes(w) + column] = group.zero;
    uint8_t* out = block + group_head_bytes(w) + column * 4;
    const uint8_t* codes = group.codes;
    if (w.bits == 8) {
      for (int k = 0; k < w.group; k += 4) std::memcpy(out + k * kPanel, codes + k, 4);
      return;
    }
    for (int k = 0; k < w.group; k += 8)
      for (int j = 0; j < 4; j++)
        out[k / 8 * 256 + j] = static_cast<uint8_t>(codes[k + j] | codes[k + 4 + j] << 4);
  }
};

float load_as_float(const void* src, int dtype, int64_t index) {
  if (dtype == HEARTH_F32) return static_cast<const float*>(src)[index];
  uint16_t bits = static_cast<const uint16_t*>(src)[index];
  return dtype == HEARTH_BF16 ? Bf16::load(bits) : F16::load(bits);
}

// Whether a finite value is beyond the largest half.
bool exceeds_half(const void* src, int dtype, int64_t count) {
  if (dtype == HEARTH_F16) return false;
  float most = 0.0f;
  for (int64_t i = 0; i < count; i++) {
    float magnitude = std::fabs(load_as_float(src, dtype, i));
    if (magnitude > most && !std::isinf(magnitude)) most = magnitude;
  }
  return most >= 65520.0f;
}

// Fits every group of the source's rows; `take(row, group, fitted)` gets the codes.
template <class Take>
bool fit_rows(const hearth_layout& w, const void* src, int src_dtype, int64_t num_rows,
              int candidates, const char* isa, Take take) {
  const Kernels& kernels = choose_kernels(isa);
  int64_t groups = num_groups(w.cols, w.group);
  std::vector<float> values(static_cast<size_t>(groups * w.group));  // zero behind a row's end
  uint8_t codes[kMaxGroup + 64];
  for (int64_t r = 0; r < num_rows; r++) {
    for (int64_t k = 0; k < w.cols; k++)
      values[static_cast<size_t>(k)] = load_as_float(src, src_dtype, r * w.cols + k);
    for (int64_t g = 0; g < groups; g++) {
      FitArgs args{values.data() + g * w.group,
                   w.group,
                   w.bits,
                   w.zeros != 0,
                   w.fp8 != 0,
                   candidates,
                   codes,
                   0,
                   0,
                   true};
      kernels.fit(args);
      if (!args.is_finite) return false;
      take(r, g, args);
    }
  }
  return true;
}

bool is_finite(float x) {
  return x - x == 0.0f;
}

// Whether all codes of a group are ones that `bits` hold; of FP8, numbers.
bool fits(const uint8_t* codes, const hearth_layout& w, uint8_t zero) {
  if (w.fp8)
    return std::none_of(codes, codes + w.group, [](uint8_t c) { return (c & 127) == 127; });
  if (w.bits == 8) return true;
  uint8_t high = zero;
  for (int k = 0; k < w.group; k++) high |= codes[k];
  return high < 1 << w.bits;
}

// The e4m3 of 4 · n for a signed byte n, up to 448 and cut off to its three bits of fraction.
uint8_t scaled_e4m3(uint8_t byte) {
  int n = static_cast<int8_t>(byte), size = std::min(std::abs(n), 112);
  if (size == 0) return 0;
  int exponent = std::bit_width(static_cast<unsigned>(size)) - 1;
  int fraction = (size << 3 >> exponent) & 7;
  return static_cast<uint8_t>((n < 0 ? 0x80 : 0) | (exponent + 9) << 3 | fraction);
}

// Uniform codes: eight from one random word. Scales give values of the amplitude.
void fill_quantized(uint8_t* dst, const hearth_layout& w, int64_t first_row, int64_t num_rows,
                    uint64_t seed, float amplitude) {
  FitArgs args{};
  float values[64] = {amplitude};
  uint8_t codes[64];
  args = {values, 64, w.bits, w.zeros != 0, w.fp8 != 0, 0, codes, 0, 0, true};
  choose_kernels("generic").fit(args);
  float wide_scale = Bf16::load(args.scale);
  const void* scale = w.wide ? static_cast<const void*>(&wide_scale) : &args.scale;
  int middle = middle_code(w.bits);
  bool is_table = w.kind == HEARTH_TABLE;
  int64_t groups = num_groups(w.cols, w.group), table_row = is_table ? table_row_bytes(w) : 0;
  for (int64_t row = first_row; row < first_row + num_rows; row++) {
    uint64_t key = mix(seed ^ mix(static_cast<uint64_t>(row)));
    int64_t column = row % kPanel;
    for (int64_t g = 0; g < groups; g++) {
      uint8_t* block = is_table
                           ? dst + row * table_row
                           : dst + row / kPanel * quant_panel_bytes(w) + g * group_block_bytes(w);
      int64_t scale_at = is_table ? groups * w.group + g * scale_bytes(w) : column * scale_bytes(w);
      std::memcpy(block + scale_at, scale, static_cast<size_t>(scale_bytes(w)));
      if (w.zeros) block[kPanel * scale_bytes(w) + column] = static_cast<uint8_t>(middle);
      uint8_t* out = is_table ? block + g * w.group : block + group_head_bytes(w) + column * 4;
      int64_t step = is_table ? 4 : 256;
      for (int k = 0; k < w.group; k += w.bits == 8 ? 4 : 8, out += step) {
        auto word = static_cast<uint32_t>(mix(key + static_cast<uint64_t>(g * w.group + k)));
        std::memcpy(out, &word, 4);
        if (w.fp8) std::transform(out, out + 4, out, scaled_e4m3);
      }
    }
  }
}

// A code of an error for what may be thrown; false: what was given cannot be packed.
template <class Work>
int32_t guarded(Work work) {
  try {
    return work() ? HEARTH_OK : HEARTH_E_ARGUMENT;
  } catch (const Failure& failure) {
    return failure.code;
  } catch (const std::bad_alloc&) {
    return HEARTH_E_MEMORY;
  }
}

bool valid(const hearth_layout& w) {
  if (w.bits == 0) return true;
  bool shape =
      (w.bits == 4 || w.bits == 8) && w.group > 0 && w.group <= kMaxGroup && w.group % 32 == 0;
  if (w.fp8 && (w.bits != 8 || w.zeros)) return false;
  return shape && (w.kind == HEARTH_LINEAR || (w.kind == HEARTH_TABLE && w.bits == 8 && !w.zeros));
}

}  // namespace
}  // namespace hearth

using namespace hearth;

extern "C" int32_t hearth_pack(void* dst, const hearth_layout* layout, const void* src,
                               int32_t src_dtype, int64_t first_row, int64_t num_rows,
                               int32_t candidates, const char* isa) {
  if (!dst || !layout || !src) return HEARTH_E_ARGUMENT;
  const hearth_layout& w = *layout;
  Shape shape{w.kind, w.rows, w.cols, first_row, num_rows};
  if (!valid(shape) || !valid(w) || src_dtype < HEARTH_F32 || src_dtype > HEARTH_F16)
    return HEARTH_E_ARGUMENT;
  if (w.bits > 0) {
    CodesPacker packer{w, static_cast<uint8_t*>(dst)};
    return guarded([&] {
      return fit_rows(w, src, src_dtype, num_rows, candidates, isa,
                      [&](int64_t row, int64_t group, const FitArgs& fit) {
                        packer.put(first_row + row, group,
                                   {fit.codes, Bf16::load(fit.scale), fit.zero});
                      });
    });
  }
  if (w.kind == HEARTH_VECTOR && w.dtype != HEARTH_F32) return HEARTH_E_ARGUMENT;
  if (w.dtype == HEARTH_F16 && exceeds_half(src, src_dtype, num_rows * w.cols))
    return HEARTH_E_ARGUMENT;
  bool known = w.dtype == HEARTH_F32    ? pack_from<F32>(dst, src, src_dtype, shape)
               : w.dtype == HEARTH_BF16 ? pack_from<Bf16>(dst, src, src_dtype, shape)
               : w.dtype == HEARTH_F16  ? pack_from<F16>(dst, src, src_dtype, shape)
                                        : false;
  return known ? HEARTH_OK : HEARTH_E_ARGUMENT;
}

extern "C" int32_t hearth_quantize(const hearth_layout* layout, const void* src, int32_t src_dtype,
                                   int64_t num_rows, int32_t candidates, const char* isa,
                                   uint8_t* codes, uint16_t* scales, uint8_t* zeros) {
  if (!layout || !src || !codes || !scales || !zeros) return HEARTH_E_ARGUMENT;
  const hearth_layout& w = *layout;
  if (!valid(Shape{w.kind, w.rows, w.cols, 0, num_rows}) || !valid(w) || w.bits == 0 ||
      src_dtype < HEARTH_F32 || src_dtype > HEARTH_F16)
    return HEARTH_E_ARGUMENT;
  int64_t groups = num_groups(w.cols, w.group);
  return guarded([&] {
    return fit_rows(w, src, src_dtype, num_rows, candidates, isa,
                    [&](int64_t row, int64_t group, const FitArgs& fit) {
                      int64_t index = row * groups + group;
                      std::memcpy(codes + index * w.group, fit.codes, static_cast<size_t>(w.group));
                      scales[index] = fit.scale;
                      zeros[index] = fit.zero;
                    });
  });
}

extern "C" int32_t hearth_pack_codes(void* dst, const hearth_layout* layout, const uint8_t* codes,
                                     const float* scales, const uint8_t* zeros, int64_t first_row,
                                     int64_t num_rows) {
  if (!dst || !layout || !codes || !scales) return HEARTH_E_ARGUMENT;
  const hearth_layout& w = *layout;
  if (!valid(Shape{w.kind, w.rows, w.cols, first_row, num_rows}) || !valid(w) || w.bits == 0 ||
      (w.zeros != 0) != (zeros != nullptr))
    return HEARTH_E_ARGUMENT;
  CodesPacker packer{w, static_cast<uint8_t*>(dst)};
  int64_t groups = num_groups(w.cols, w.group);
  for (int64_t index = 0; index < num_rows * groups; index++) {
    auto middle = static_cast<uint8_t>(middle_code(w.bits));
    GroupCodes group{codes + index * w.group, scales[index], zeros ? zeros[index] : middle};
    if (!is_finite(group.scale) || !fits(group.codes, w, group.zero)) return HEARTH_E_ARGUMENT;
    packer.put(first_row + index / groups, index % groups, group);
  }
  return HEARTH_OK;
}

// A value depends on the logical row and column alone, so every layout holds the same matrix. Rows
// of a panel are filled side by side: their elements lie next to each other.
extern "C" int32_t hearth_fill_random(void* dst, const hearth_layout* layout, int64_t first_row,
                                      int64_t num_rows, uint64_t seed, float base,
                                      float amplitude) {
  if (!dst || !layout) return HEARTH_E_ARGUMENT;
  const hearth_layout& w = *layout;
  Shape shape{w.kind, w.rows, w.cols, first_row, num_rows};
  if (!valid(shape) || !valid(w)) return HEARTH_E_ARGUMENT;
  if (w.bits > 0)
    fill_quantized(static_cast<uint8_t*>(dst), w, first_row, num_rows, seed, amplitude);
  else if (w.dtype == HEARTH_F32)
    fill_as<F32>(static_cast<float*>(dst), shape, {seed, base, amplitude});
  else if (w.dtype == HEARTH_BF16 && w.kind != HEARTH_VECTOR)
    fill_as<Bf16>(static_cast<uint16_t*>(dst), shape, {seed, base, amplitude});
  else if (w.dtype == HEARTH_F16 && w.kind != HEARTH_VECTOR)
    fill_as<F16>(static_cast<uint16_t*>(dst), shape, {seed, base, amplitude});
  else
    return HEARTH_E_ARGUMENT;
  return HEARTH_OK;
}
