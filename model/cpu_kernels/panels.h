// Products of many rows, in blocks, with panels of a packed matrix.
#pragma once

#include <algorithm>
#include <type_traits>

#include "forms.h"
#include "room.h"

namespace windrose {

// Panels that lie one behind the other, for some blocks of rows.
template <class Form>
class Panels {
 public:
  // `next`, if known, is where as many panels begin that this thread multiplies with next.
  Panels(const uint8_t* panels, int count, int64_t pairs, const uint8_t* next = nullptr)
      : panels_(panels), count_(count), pairs_(pairs), next_(next) {}

  // Calls take(size, first, panel, sums) for every block and each panel: the block's number of
  // rows, its first row, the panel's place among these, and their products.
  template <typename Take>
  void multiply(const RowPair* rows, const Blocks& blocks, Take&& take) const {
    if (blocks.count != 1) return multiply_many(rows, blocks, take);
    with_rows(blocks.size(0), [&](auto size) {
      for (int p = 0; p < count_; ++p) {
        Floats sums[decltype(size)::value][2];
        Form::multiply(size, rows, piece(p, 0, pairs_), sums);
        take(size, 0, p, sums);
      }
    });
  }

 private:
  Piece piece(int panel, int64_t first, int64_t count) const {
    return Form::piece(panels_ + panel * Form::panel_bytes(pairs_), pairs_, first, count);
  }

  // Several blocks: numbers are turned into bf16 once.
  template <typename Take>
  void multiply_many(const RowPair* rows, const Blocks& blocks, Take&& take) const {
    static thread_local Room<Pair> room_for_numbers;
    Pair* turned = nullptr;
    if (!std::is_same_v<Form, Bf16>) turned = room_for_numbers.fit(count_ * part() * kPanel);
    if constexpr (kStep > 1) return multiply_in_parts(rows, blocks, turned, take);
    Ahead nothing;
    for (int p = 0; p < count_; ++p) {
      const Piece of = piece(p, 0, pairs_);
      const Pair* const numbers = Form::numbers(of, turned);
      for (int64_t b = 0; b < blocks.count; ++b) {
        const int64_t first = blocks.first(b);
        with_rows(blocks.size(b), [&](auto size) {
          Floats sums[decltype(size)::value][2];
          clear(size, sums);
          Form::add(size, rows + first * pairs_, numbers, of, sums, nothing);
          Form::finish(size, of, sums);
          take(size, first, p, sums);
        });
      }
    }
  }

  // Tiles, whose sums lie in memory anyway, take some inputs of all panels and blocks before the
  // next ones: those stay in a core's second cache meanwhile.
  template <typename Take>
  void multiply_in_parts(const RowPair* rows, const Blocks& blocks, Pair* turned,
                         Take&& take) const {
    static thread_local Room<Floats[kMaxBlockRows][2]> room_for_sums;
    const bool in_one = part() >= pairs_;  // the same sums again: they stay in the first cache
    auto* const all_sums = room_for_sums.fit(in_one ? 1 : blocks.count * count_);
    for (int64_t begin = 0; begin < pairs_; begin += part()) {
      const int64_t some = std::min(part(), pairs_ - begin);
      for (int p = 0; p < count_ && turned; ++p) {
        Form::numbers(piece(p, begin, some), turned + p * part() * kPanel);
      }
      for (int64_t b = 0; b < blocks.count; ++b) {
        const int64_t first = blocks.first(b);
        with_rows(blocks.size(b), [&](auto size) {
          const RowPair* of_block = rows + first * pairs_ + begin * size;
          for (int p = 0; p < count_; ++p) {
            auto& sums = all_sums[in_one ? 0 : b * count_ + p];
            const Piece of = piece(p, begin, some);
            const Pair* numbers = turned ? turned + p * part() * kPanel
                                         : reinterpret_cast<const Pair*>(of.numbers);
            Ahead ahead = ahead_of(p, begin, some, b, blocks.count);
            if (begin == 0) clear(size, sums);
            Form::add(size, of_block, numbers, of, sums, ahead);
            if (begin + some < pairs_) continue;
            Form::finish(size, of, sums);
            take(size, first, p, sums);
          }
        });
      }
    }
  }

  // How many pairs are taken by all before the next: whole groups of int4.
  int64_t part() const {
    if (kStep == 1) return pairs_;
    const int64_t parts = (pairs_ + kMostPart - 1) / kMostPart;
    return ((pairs_ + parts - 1) / parts + kGroupPairs - 1) / kGroupPairs * kGroupPairs;
  }

  // The first block asks for what it multiplies itself, a little ahead; each block for its share of
  // what comes after these inputs: a panel's next ones, or those of the next panels.
  Ahead ahead_of(int panel, int64_t begin, int64_t some, int64_t block, int64_t blocks) const {
    if (begin == 0 && block == 0) {
      return {piece(panel, 0, 0).numbers + kPrefetchBytes, 2 * kStep};
    }
    const int64_t left = pairs_ - begin - some;
    if (left <= 0 && !next_) return {};
    const uint8_t* const from =
        left > 0 ? piece(panel, begin + some, 0).numbers : next_ + panel * Form::panel_bytes(pairs_);
    // While the first inputs are multiplied, the first block has no share.
    const int64_t first = begin == 0 ? 1 : 0;
    const int64_t steps = std::max<int64_t>(some / kStep, 1) * (blocks - first);
    const int64_t bytes = Form::panel_bytes(left > 0 ? std::min(some, left) : part());
    const int lines = int((bytes / 64 + steps - 1) / steps);
    return {from + (block - first) * (some / kStep) * lines * 64, lines};
  }

  static constexpr int64_t kMostPart = 512;

  const uint8_t* panels_;
  int count_;
  int64_t pairs_;
  const uint8_t* next_;
};

}  // namespace windrose
