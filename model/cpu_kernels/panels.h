// Products of many rows, in blocks, with panels of a packed matrix.
#pragma once

#include <type_traits>

#include "forms.h"
#include "room.h"
#ifdef __AMX_BF16__
#include "tile_panels.h"
#endif

namespace windrose {

// Panels that lie one behind the other, for some blocks of rows.
template <class Form>
class Panels {
 public:
  // `next`, if known, is where as many panels begin that this thread multiplies with next.
  Panels(const uint8_t* panels, int count, int64_t pairs, const uint8_t* next = nullptr)
      : panels_(panels), count_(count), pairs_(pairs), next_(next) {}

  // Calls take(size, first, panel, sums, from, end) for all rows of every block and each panel: the
  // block's number of rows, its first row, the panel's place among these, their products, and
  // which of the block's rows to take now.
  template <typename Take>
  void multiply(const RowPair* rows, const Blocks& blocks, Take&& take) const {
    if (blocks.count != 1) return multiply_many(rows, blocks, take);
    with_rows(blocks.size(0), [&](auto size) {
      for (int p = 0; p < count_; ++p) {
        Floats sums[decltype(size)::value][2];
        Form::multiply(size, rows, piece(p), sums);
        take(size, 0, p, sums, 0, size);
      }
    });
  }

 private:
  Piece piece(int panel) const {
    return Form::piece(panels_ + panel * Form::panel_bytes(pairs_), pairs_, 0, pairs_);
  }

  template <typename Take>
  void multiply_many(const RowPair* rows, const Blocks& blocks, Take& take) const {
#ifdef __AMX_BF16__
    TilePanels<Form>(panels_, count_, pairs_, next_).multiply(rows, blocks, take);
#else
    static thread_local Room<Pair> room_for_numbers;  // turned into bf16 once for all blocks
    constexpr bool turned = !std::is_same_v<Form, Bf16>;
    Pair* const room = turned ? room_for_numbers.fit(pairs_ * kPanel) : nullptr;
    for (int p = 0; p < count_; ++p) {
      const Piece of = piece(p);
      const Pair* const numbers = Form::numbers(of, room);
      const Asking asking(*this, p, turned ? 0 : blocks.count);
      for (int64_t b = 0; b < blocks.count; ++b) {
        const int64_t first = blocks.first(b);
        const Ahead ahead = asking.of_block(b);
        with_rows(blocks.size(b), [&](auto size) {
          Floats sums[decltype(size)::value][2];
          Form::template add<true>(size, rows + first * pairs_, numbers, of, sums, ahead);
          Form::finish(size, of, sums);
          take(size, first, p, sums, 0, size);
        });
      }
    }
#endif
  }

  // Which part of the next panel each block of rows asks memory for, so that memory is at work
  // during all of them. A panel that nobody has asked for is asked for by its first block.
  class Asking {
   public:
    Asking(const Panels& panels, int p, int64_t blocks) {
      if (!kAsksForNext || blocks == 0) return;
      static thread_local const uint8_t* asked_for = nullptr;
      bytes_ = Form::panel_bytes(panels.pairs_);
      const uint8_t* const here = panels.panels_ + p * bytes_;
      next_ = p + 1 < panels.count_ ? here + bytes_ : panels.next_;
      first_ = asked_for == here ? 0 : 1;
      shares_ = blocks - first_;
      asked_for = next_;
    }

    Ahead of_block(int64_t b) const {
      if (!next_ || b < first_) return {};
      return {next_ + bytes_ * (b - first_) / shares_, 0, kLineBytes / shares_};
    }

   private:
    static constexpr int64_t kLineBytes = 64;  // one for each half of a step, of all shares
    const uint8_t* next_ = nullptr;
    int64_t bytes_ = 0;
    int64_t first_ = 0;  // block that asks
    int64_t shares_ = 1;
  };

  const uint8_t* panels_;
  int count_;
  int64_t pairs_;
  const uint8_t* next_;
};

}  // namespace windrose
