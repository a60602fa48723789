// Packing of matrices, and y = x w^T over a packed one.
#include <type_traits>
#include <vector>

#include "matmul.h"
#include "pool.h"

using namespace windrose;

namespace {

// Writes the panel of outputs [first, first + 32) of the matrix that `row_of` names row by row;
// rows that do not exist (null) are zeros.
template <typename RowOf>
void pack_panel(RowOf&& row_of, int64_t inputs, bf16* out) {
  for (int o = 0; o < kPanel; ++o) {
    const bf16* row = row_of(o);
    for (int64_t k = 0; k < inputs / 2; ++k) {
      bf16* at = out + (k * kPanel + o) * 2;
      at[0] = row ? row[2 * k] : 0;
      at[1] = row ? row[2 * k + 1] : 0;
    }
  }
}

}  // namespace

extern "C" {

// 1 if this machine can run these kernels and oneDNN has nothing better for it (AMX).
int windrose_supported() {
  return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && !__builtin_cpu_supports("amx-bf16");
}

// out: ceil(outputs / 32) panels of `inputs` * 32 bf16. `inputs` is even.
void windrose_pack(const bf16* weight, bf16* out, int64_t outputs, int64_t inputs) {
  const int64_t panels = (outputs + kPanel - 1) / kPanel;
  for (int64_t p = 0; p < panels; ++p) {
    pack_panel(
        [&](int o) {
          const int64_t row = p * kPanel + o;
          return row < outputs ? weight + row * inputs : nullptr;
        },
        inputs, out + p * kPanel * inputs);
  }
}

// Two matrices of the same shape in turns of 16 outputs: a panel is 16 of w1 and the same of w3.
void windrose_pack_pair(const bf16* w1, const bf16* w3, bf16* out, int64_t outputs,
                        int64_t inputs) {
  constexpr int kHalf = kPanel / 2;
  const int64_t panels = (outputs + kHalf - 1) / kHalf;
  for (int64_t p = 0; p < panels; ++p) {
    pack_panel(
        [&](int o) {
          const int64_t row = p * kHalf + o % kHalf;
          if (row >= outputs) return static_cast<const bf16*>(nullptr);
          return (o < kHalf ? w1 : w3) + row * inputs;
        },
        inputs, out + p * kPanel * inputs);
  }
}

// y[rows, outputs] = x[rows, inputs] times the packed matrix; strides in elements.
void windrose_linear(const bf16* x, int64_t x_stride, const bf16* packed, bf16* y, int64_t rows,
                     int64_t inputs, int64_t outputs, int threads) {
  const int64_t pairs = inputs / 2;
  const int64_t panels = (outputs + kPanel - 1) / kPanel;
  const Blocks blocks(rows);
  static thread_local std::vector<Pair> scratch;
  if (scratch.size() < size_t(rows * pairs)) scratch.resize(rows * pairs);
  Pair* const packed_rows = scratch.data();
  pool().run(threads, blocks.count, 1, [&](int64_t b) {
    const int64_t first = blocks.first(b);
    pack_rows(x + first * x_stride, x_stride, nullptr, blocks.size(b), pairs,
              packed_rows + first * pairs);
  });
  pool().run(threads, panels, 2, [&](int64_t p) {
    const Pair* panel = reinterpret_cast<const Pair*>(packed) + p * pairs * kPanel;
    const int width = int(outputs - p * kPanel < kPanel ? outputs - p * kPanel : kPanel);
    for (int64_t b = 0; b < blocks.count; ++b) {
      const int64_t first = blocks.first(b);
      with_rows(blocks.size(b), [&](auto size) {
        constexpr int kRows = decltype(size)::value;
        __m512 sums[kRows][2];
        multiply<kRows>(packed_rows + first * pairs, panel, pairs, sums);
        bf16* out = y + first * outputs + p * kPanel;
#pragma GCC unroll 16
        for (int r = 0; r < kRows; ++r) {
          store_bf16(out + r * outputs, sums[r][0], width);
          if (width > 16) store_bf16(out + r * outputs + 16, sums[r][1], width - 16);
        }
      });
    }
  });
}

}  // extern "C"
