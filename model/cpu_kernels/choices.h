// The rows of a layer's experts, and what their kernels have in common.
#pragma once

#include <algorithm>
#include <vector>

#include "panels.h"
#include "pool.h"
#include "room.h"

namespace windrose {

struct Work {  // the rows of one expert, in order
  int64_t expert;
  int64_t first;  // among the choices sorted by expert
  Blocks blocks;
};

// Which expert has which rows. Grows to the largest step of its thread.
struct Choices {
  std::vector<int32_t> rows;
  std::vector<float> weights;
  std::vector<int64_t> starts;
  std::vector<Work> work;

  int64_t count() const { return int64_t(rows.size()); }

  int64_t most_blocks() const {
    int64_t most = 0;
    for (const Work& one : work) most = std::max(most, one.blocks.count);
    return most;
  }

  // Sorts by expert what ids [num_rows, top_k] choose; those below 0 are nobody's. Returns 0, or
  // 1 + an id that `held(id)` denies.
  template <typename Held>
  int64_t sort(const int64_t* ids, const float* of_weights, int64_t num_rows, int64_t top_k,
               int64_t num_experts, Held&& held) {
    starts.assign(num_experts + 1, 0);
    for (int64_t i = 0; i < num_rows * top_k; ++i) {
      if (ids[i] < 0) continue;
      if (ids[i] >= num_experts || !held(ids[i])) return 1 + ids[i];
      ++starts[ids[i] + 1];
    }
    for (int64_t e = 0; e < num_experts; ++e) starts[e + 1] += starts[e];
    const int64_t choices = starts[num_experts];
    rows.resize(choices);
    weights.resize(choices);
    work.clear();
    for (int64_t e = 0; e < num_experts; ++e) {
      if (starts[e + 1] > starts[e]) {
        work.push_back({e, starts[e], Blocks(starts[e + 1] - starts[e])});
      }
    }
    for (int64_t i = 0; i < num_rows * top_k; ++i) {
      if (ids[i] < 0) continue;
      const int64_t at = starts[ids[i]]++;
      rows[at] = int32_t(i / top_k);
      weights[at] = of_weights[i];
    }
    return 0;
  }

  // Packs everybody's rows of x [.., 2 * pairs] into `room`, block after block.
  void pack(const bf16* x, int64_t stride, int64_t pairs, Room<RowPair>& room, int threads) {
    RowPair* const out = room.fit(count() * pairs);
    pool().run(threads, int64_t(work.size()), 1, [&](int64_t w) {
      const Work& one = work[w];
      for (int64_t b = 0; b < one.blocks.count; ++b) {
        const int64_t first = one.first + one.blocks.first(b);
        pack_rows(x, stride, rows.data() + first, one.blocks.size(b), pairs,
                  out + first * pairs);
      }
    });
  }
};

// The last product of an expert: its matrix, packed, and the rows that it multiplies.
struct Down {
  const uint8_t* matrix;
  int64_t pairs;
  const RowPair* rows;  // of the expert's first choice
};

// y[rows, width] = sum over the choices of weight * row times matrix; `down(work)` has them.
// Every task is some panels of 32 outputs, of all experts in order, so that nobody else adds to
// them.
template <class Form, typename Of>
void sum_down(const Choices& s, Of&& down, int64_t rows, int64_t width, bf16* y, int threads) {
  const int64_t out_panels = (width + kPanel - 1) / kPanel;
  // Each task reads all rows, which are long: few tasks.
  const int64_t side = panels_at_once(1, 8, 2, out_panels, threads, s.most_blocks());
  pool().run(threads, (out_panels + side - 1) / side, 1, [&](int64_t task) {
    static thread_local Room<float> room;
    const int64_t p = task * side;
    const int count = int(out_panels - p < side ? out_panels - p : side);
    float* const sums_here = room.fit(count * rows * kPanel);  // [panel][row][32]
    std::fill_n(sums_here, count * rows * kPanel, 0.0f);
    for (size_t w = 0; w < s.work.size(); ++w) {
      const Work& work = s.work[w];
      const Down from = down(work);
      const int64_t to_panel = p * Form::panel_bytes(from.pairs);
      const bool has_next = kStep == 1 && w + 1 < s.work.size();
      const Panels<Form> panels(from.matrix + to_panel, count, from.pairs,
                                has_next ? down(s.work[w + 1]).matrix + to_panel : nullptr);
      panels.multiply(from.rows, work.blocks, [&](auto, int64_t first, int panel, auto& sums,
                                                  int begin, int end) {
        float* const of_panel = sums_here + panel * rows * kPanel;
        for (int r = begin; r < end; ++r) {
          const int64_t choice = work.first + first + r;
          float* to = of_panel + s.rows[choice] * kPanel;
          const Floats weight = all(s.weights[choice]);
          for (int half = 0; half < 2; ++half) {
            const Floats old = load(to + 16 * half);
            store(to + 16 * half, fma(weight, sums[r][half], old));
          }
        }
      });
    }
    for (int panel = 0; panel < count; ++panel) {
      const int64_t output = (p + panel) * kPanel;
      const int valid = int(width - output < kPanel ? width - output : kPanel);
      for (int64_t r = 0; r < rows; ++r) {
        const float* from = sums_here + (panel * rows + r) * kPanel;
        bf16* out = y + r * width + output;
        store_bf16(out, load(from), valid);
        if (valid > 16) store_bf16(out + 16, load(from + 16), valid - 16);
      }
    }
  });
}

// silu(gate) * up
inline Floats swiglu(Floats gate, Floats up) {
  const Floats e = exp_of(zeros() - gate);
  return gate / (all(1.0f) + e) * up;
}

}  // namespace windrose
