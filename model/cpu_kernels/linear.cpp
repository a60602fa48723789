// Packing of matrices, and y = x w^T over a packed one.
#ifdef __AMX_BF16__
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <type_traits>

#include "kernels.h"
#include "panels.h"
#include "pool.h"
#include "room.h"

using namespace windrose;

namespace {

// Writes half a panel: 16 outputs, whose weights begin at `rows`; those from `exist` on are zeros.
void pack_half(const bf16* rows, int64_t exist, int64_t inputs, Pair* out) {
  const int pairs = int(inputs / 2);
  const Lanes there = exist <= 0 ? 0 : first_lanes(exist);
  for (int k = 0; k < pairs; ++k) {
    store(out + int64_t(k) * kPanel, column(rows + 2 * k, pairs, there));
  }
}

}  // namespace

extern "C" {

// 1 if this machine can run these kernels; the process may then use what they need.
int windrose_supported() {
#ifdef __AVX512BF16__
  if (!__builtin_cpu_supports("avx512bf16") || !__builtin_cpu_supports("avx512bw") ||
      !__builtin_cpu_supports("avx512vl")) {
    return 0;
  }
#ifdef __AMX_BF16__
  // Linux grants the tiles' registers to who asks (Documentation/arch/x86/xstate.rst).
  constexpr int kAskForState = 0x1023, kTileData = 18;
  return __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-bf16") &&
         syscall(SYS_arch_prctl, kAskForState, kTileData) == 0;
#endif
  return 1;
#else
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
}

// out: ceil(outputs / 32) panels of `inputs` * 32 bf16. `inputs` is even.
void windrose_pack(const bf16* weight, bf16* out, int64_t outputs, int64_t inputs) {
  for (int64_t first = 0; first < outputs; first += kPanel) {
    Pair* panel = reinterpret_cast<Pair*>(out + first * inputs);
    for (int64_t half = 0; half < kPanel; half += 16) {
      pack_half(weight + (first + half) * inputs, outputs - first - half, inputs, panel + half);
    }
  }
}

// Two matrices of the same shape in turns of 16 outputs: a panel is 16 of w1 and the same of w3.
void windrose_pack_pair(const bf16* w1, const bf16* w3, bf16* out, int64_t outputs,
                        int64_t inputs) {
  for (int64_t first = 0; first < outputs; first += 16) {
    Pair* panel = reinterpret_cast<Pair*>(out + 2 * first * inputs);
    pack_half(w1 + first * inputs, outputs - first, inputs, panel);
    pack_half(w3 + first * inputs, outputs - first, inputs, panel + 16);
  }
}

// y[rows, outputs] = x[rows, inputs] times the packed matrix, whose numbers have so many bits;
// strides in elements.
void windrose_linear(const bf16* x, int64_t x_stride, const uint8_t* packed, int bits, bf16* y,
                     int64_t rows, int64_t inputs, int64_t outputs, int threads) {
  const int64_t pairs = inputs / 2;
  const int64_t panels = (outputs + kPanel - 1) / kPanel;
  const Blocks blocks(rows);
  static thread_local Room<RowPair> room;
  RowPair* const packed_rows = room.fit(rows * pairs);
  pool().run(threads, blocks.count, 1, [&](int64_t b) {
    const int64_t first = blocks.first(b);
    pack_rows(x + first * x_stride, x_stride, nullptr, blocks.size(b), pairs,
              packed_rows + first * pairs);
  });
  with_form(bits, [&](auto form) {
    using Form = decltype(form);
    const int64_t bytes = Form::panel_bytes(pairs);
    const int64_t side = panels_at_once(2, 4, 4, panels, threads, blocks.count);
    pool().run(threads, (panels + side - 1) / side, 1, [&](int64_t task) {
      const int64_t p = task * side;
      const int count = int(panels - p < side ? panels - p : side);
      const Panels<Form> some(packed + p * bytes, count, pairs);
      some.multiply(packed_rows, blocks, [&](auto, int64_t first, int panel, auto& sums,
                                             int from, int end) {
        const int64_t output = (p + panel) * kPanel;
        const int width = int(outputs - output < kPanel ? outputs - output : kPanel);
        bf16* out = y + first * outputs + output;
        WINDROSE_UNROLL
        for (int r = from; r < end; ++r) {
          store_bf16(out + r * outputs, sums[r][0], width);
          if (width > 16) store_bf16(out + r * outputs + 16, sums[r][1], width - 16);
        }
      });
    });
  });
}

}  // extern "C"
