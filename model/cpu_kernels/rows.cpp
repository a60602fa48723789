// What is done to each row by itself: norm, the choice of experts, and that of a greedy token.
#include <cmath>
#include <limits>

#include "kernels.h"
#include "pool.h"

using namespace windrose;

namespace {

// `count` (16 at most) bf16 as fp32; `nothing` beyond.
Floats load_some(const bf16* from, int64_t count, float nothing) {
  if (count >= 16) return load_bf16(from);
  return select(first_lanes(count), load_bf16(from, count), all(nothing));
}

// The first of the largest values; -1 if that is NaN (which counts as largest) or infinite.
int64_t best_of(const bf16* values, int64_t count) {
  const float lowest = -std::numeric_limits<float>::infinity();
  Floats largest = all(lowest);
  Lanes nan = 0;
  for (int64_t i = 0; i < count; i += 16) {
    const Floats v = load_some(values + i, count - i, lowest);
    nan |= is_nan(v);
    largest = larger(largest, v);
  }
  const float best = largest_of(largest);
  if (nan || !std::isfinite(best)) return -1;
  for (int64_t i = 0;; i += 16) {
    const Floats v = load_some(values + i, count - i, lowest);
    const Lanes found = equal(v, all(best));
    if (found) return i + __builtin_ctz(found);
  }
}

}  // namespace

extern "C" {

// y = x / rms(x) * weight, the mean in fp32, rounded before the product with the weight as the
// model does. x and y may be the same.
void windrose_rms_norm(const bf16* x, const bf16* weight, bf16* y, int64_t rows, int64_t width,
                       float eps) {
  const int64_t whole = width / 16 * 16;
  for (int64_t r = 0; r < rows; ++r) {
    const bf16* from = x + r * width;
    bf16* to = y + r * width;
    Floats squares = zeros();
    for (int64_t i = 0; i < whole; i += 16) {
      const Floats v = load_bf16(from + i);
      squares = fma(v, v, squares);
    }
    float sum = sum_of(squares);
    const int64_t rest = width - whole;
    if (rest) {
      const Floats v = load_bf16(from + whole, rest);
      sum += sum_of(v * v);
    }
    const Floats scale = all(1.0f / std::sqrt(sum / float(width) + eps));
    const auto scaled = [&](Floats v, Floats w) { return from_bf16(to_bf16(v * scale)) * w; };
    for (int64_t i = 0; i < whole; i += 16) {
      store_bf16(to + i, scaled(load_bf16(from + i), load_bf16(weight + i)));
    }
    if (rest) {
      const Floats v = load_bf16(from + whole, rest);
      store_bf16(to + whole, scaled(v, load_bf16(weight + whole, rest)), rest);
    }
  }
}

// The top_k largest of each row's logits (the lower id of equals first) and the softmax over
// them. logits bf16 [rows, experts]; ids int64 and weights fp32, both [rows, top_k].
void windrose_top_k(const bf16* logits, int64_t* ids, float* weights, int64_t rows,
                    int64_t experts, int64_t top_k) {
  for (int64_t r = 0; r < rows; ++r) {
    int64_t* chosen = ids + r * top_k;
    float* values = weights + r * top_k;
    int64_t held = 0;
    for (int64_t e = 0; e < experts; ++e) {
      const uint32_t bits = uint32_t(logits[r * experts + e]) << 16;
      float value;
      std::memcpy(&value, &bits, sizeof value);
      int64_t at = held < top_k ? held : top_k;
      // NaN counts as largest, as in torch, and stays so: no number comes before it.
      while (at > 0 && !(value <= values[at - 1]) && values[at - 1] == values[at - 1]) --at;
      if (at >= top_k) continue;
      for (int64_t i = held < top_k ? held : top_k - 1; i > at; --i) {
        values[i] = values[i - 1];
        chosen[i] = chosen[i - 1];
      }
      values[at] = value;
      chosen[at] = e;
      if (held < top_k) ++held;
    }
    const float largest = values[0];
    float sum = 0.0f;
    for (int64_t k = 0; k < top_k; ++k) sum += values[k] = std::exp(values[k] - largest);
    for (int64_t k = 0; k < top_k; ++k) values[k] /= sum;
  }
}

// best[rows]: of each row of logits [rows, width] the lowest id of its largest, or -1 where that
// is not finite.
void windrose_best(const bf16* logits, int64_t* best, int64_t rows, int64_t width, int threads) {
  pool().run(threads, rows, 1, [&](int64_t r) { best[r] = best_of(logits + r * width, width); });
}

}  // extern "C"
