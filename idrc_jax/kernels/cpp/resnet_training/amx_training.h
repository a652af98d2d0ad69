// What `TrainingWinograd` does, by the tiles of AMX: a convolution's operands are rounded to bfloat16, sums are float32.

#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <vector>

#include "amx_convolution.h"

namespace idrc {
namespace {

constexpr int kLargest = 64;  // channels

#if defined(IDRC_HAS_AMX)

// Of 3x3 convolutions that keep the shape, of images with a border; what becomes of a result is the caller's, as there.
class AmxTraining {
 public:
  static bool Fits(const Shape& shape) { return Amx::Usable() && Field::Fits(shape); }

  static int Steps(const Shape& shape, int count, bool gradients) {
    const Field field = Field::Of(shape);
    const int columns = shape.channels / kTile, products = columns == 1 ? 1 : columns / 2;
    const int places = Fields(field, count) * ((field.Tiles() + Rows(field) - 1) / Rows(field)) * products;
    return places + (gradients ? Groups(shape.channels) : 0);
  }

  // From weights [3, 3, in, out].
  void Prepare(const float* weights, const Shape& shape) {
    const std::vector<Piece> pieces = SquarePieces(Field::Of(shape));
    Reserve(PackedTiles(pieces.size(), shape.channels), &filters_);
    PackTiles(weights, shape.channels, pieces, filters_.memory.get());
    pieces_.clear();
    for (const Piece& piece : pieces) pieces_.push_back(piece.at);
  }

  template <class Finish>
  void Run(const float* from, const Shape& shape, int count, Finish& finish) {
    const Amx held;
    Convolve(from, shape, count, finish);
  }

  // Adds the gradient with respect to the weights to `sums` [3, 3, in, out] (if `fresh`, whatever they hold is none), and
  // convolves the results' gradient with weights that were turned.
  template <class Finish>
  void Gradients(const float* from, const float* gradient, const Shape& shape, int count, float* sums, bool fresh,
                 Finish& finish) {
    const Amx held;
    Accumulate(from, gradient, shape, count, sums, fresh, finish);
    Convolve(gradient, shape, count, finish);
  }

 private:
  struct Memory {
    Halves memory;
    std::size_t size = 0;
  };

  static void Reserve(std::size_t size, Memory* of) {
    if (of->size >= size) return;
    of->memory = ZeroHalves(size);
    of->size = size;
  }

  static int Fields(const Field& field, int count) { return (count + field.images - 1) / field.images; }
  static int Rows(const Field& field) { return field.channels == kTile ? 4 : 2; }  // tiles of places at a time

  // ---- Convolution.

  static constexpr int kPart = 8;  // places of one image that are told together

  // Tiles of sums that are made and wait to be told, part by part while the next are made.
  struct Waiting {
    const float* sums = nullptr;
    std::ptrdiff_t at[4] = {};  // of each tile's first pixel, among images without a border
    int columns[4] = {};
    int part = 0, parts = 0;
  };

  template <class Finish>
  void Convolve(const float* from, const Shape& shape, int count, Finish& finish) {
    const Field field = Field::Of(shape);
    const bool narrow = field.channels == kTile;
    const int across = field.Places() / kTile, wide = narrow ? kTile : 2 * kTile;
    const std::ptrdiff_t plain = static_cast<std::ptrdiff_t>(shape.height) * shape.width * shape.channels;
    Round(from, shape, count, field);
    Waiting waiting;
    int buffer = 0;
    for (int f = 0; f < Fields(field, count); ++f) {
      const Half* origin = images_.memory.get() + f * field.Size() + field.At(0, 0);
      const int images = std::min(field.images, count - f * field.images);
      const auto tell = [&](int parts) { Tell(field, plain, images, parts, waiting, finish); };
      for (int first = 0, some; first < field.Tiles(); first += some) {
        some = std::min(Rows(field), field.Tiles() - first);
        const Half* left[4];
        std::ptrdiff_t at[4];
        for (int t = 0; t < some; ++t) {
          const int y = (first + t) / across, place = (first + t) % across * kTile;
          left[t] = origin + y * field.Row() + static_cast<std::ptrdiff_t>(place) * field.channels;
          at[t] = f * field.images * plain +
                  static_cast<std::ptrdiff_t>(y * field.width + place / field.images) * field.channels;
        }
        for (int column = 0; column < field.channels; column += wide) {
          float* sums = sums_.get() + buffer * 4 * kTile * kTile;
          buffer = 1 - buffer;
          const int pieces = static_cast<int>(pieces_.size()), parts = (waiting.parts + pieces - 1) / pieces;
          const auto between = [&] { tell(parts); };
          const Half* filters = filters_.memory.get();
          if (narrow) {
            MultiplyTiles<4, 1>(pieces_, filters, column, left, field.channels, sums, between);
          } else if (some == 2) {
            MultiplyTiles<2, 2>(pieces_, filters, column, left, field.channels, sums, between);
          } else {
            MultiplyTiles<1, 2>(pieces_, filters, column, left, field.channels, sums, between);
          }
          finish.Step();
          waiting = {sums, {}, {}, 0, some * wide / kPart};
          int made = 0;
          for (int t = 0; t < some; ++t) {
            for (int c = column; c < column + wide; c += kTile, ++made) {
              waiting.columns[made] = c;
              waiting.at[made] = at[t] + c;
            }
          }
        }
        if (first % 8 == 0) finish.EndBlock();
      }
      tell(waiting.parts);
    }
    finish.EndBlock();
  }

  // Some more parts: of a tile of one image its two halves, of a tile of two images each of them.
  template <class Finish>
  static void Tell(const Field& field, std::ptrdiff_t plain, int images, int parts, Waiting& waiting, Finish& finish) {
    for (const int end = std::min(waiting.part + parts, waiting.parts); waiting.part < end; ++waiting.part) {
      const int tile = waiting.part / 2, half = waiting.part % 2;
      const bool single = field.images == 1;
      if (!single && half >= images) continue;
      const float* sums = waiting.sums + tile * kTile * kTile + half * (single ? kPart : 1) * kTile;
      const std::ptrdiff_t at = waiting.at[tile] + half * (single ? kPart * field.channels : plain);
      const std::ptrdiff_t row = static_cast<std::ptrdiff_t>(single ? 1 : 2) * kTile;
      for (int v = 0; v < kTile; v += kLanes) {
        auto told = finish.Begin(at + v, waiting.columns[tile] + v);
#pragma GCC unroll 8
        for (int r = 0; r < kPart; ++r) {
          told.Put(static_cast<std::ptrdiff_t>(r) * field.channels, Load(sums + r * row + v));
        }
        told.End();
      }
    }
  }

  // Images with a border, as fields.
  void Round(const float* from, const Shape& shape, int count, const Field& field) {
    Reserve(Fields(field, count) * field.Size(), &images_);
    for (int i = 0; i < count; ++i, from += shape.Size()) {
      Half* to = images_.memory.get() + i / field.images * field.Size() + i % field.images * field.channels;
      if (field.images == 1) {
        RoundAll(from, static_cast<int>(shape.Size()), to);
        continue;
      }
      const int pixels = (shape.height + 2) * (shape.width + 2);
      for (int p = 0; p < pixels; ++p) RoundAll(from + p * field.channels, field.channels, to + p * field.Pixel());
    }
  }

  // A multiple of 16 numbers.
  static void RoundAll(const float* from, int count, Half* to) {
#if defined(IDRC_EMULATE_AMX)
    for (int i = 0; i < count; ++i) to[i] = ToHalf(from[i]);
#else
    for (int i = 0; i < count; i += 16) {
      const __m256bh rounded = _mm512_cvtneps_pbh(_mm512_loadu_ps(from + i));
      std::memcpy(to + i, &rounded, sizeof rounded);
    }
#endif
  }

  // ---- The gradient with respect to the weights: sums over all pixels, borders too, where the results' gradient is 0.

  static constexpr int kBefore = kTileDepth;  // zeros before the first pixel, where a tap reads

  // Tiles of sums that are made together: a tap's 16 channels, of narrow layers three taps; two of them and two columns.
  static int Groups(int channels) {
    const int each = channels / kTile;
    return each == 1 ? 3 : 9 * each / 2 * each / 2;
  }

  template <class Finish>
  void Accumulate(const float* from, const float* gradient, const Shape& shape, int count, float* sums, bool fresh,
                  Finish& finish) {
    const int channels = shape.channels, line = shape.width + 2, pixels = count * (shape.height + 2) * line;
    // An odd number of cache lines from channel to channel.
    const std::ptrdiff_t row = (kBefore + pixels + 2 * kTileDepth + line) / (2 * kTileDepth) * 2 * kTileDepth + kTileDepth;
    Reserve(channels * row, &turned_);
    Reserve(static_cast<std::size_t>(pixels + 2 * kTileDepth) * channels, &pairs_);
    Lay(from, pixels, channels, row, nullptr);
    Lay(gradient, pixels, channels, row, pairs_.memory.get());
    const int chunks = (pixels - 2 * line + kTileDepth - 1) / kTileDepth;
    const Half* left = turned_.memory.get() + kBefore + line;
    const Half* right = pairs_.memory.get() + static_cast<std::ptrdiff_t>(line) * channels;
    const std::ptrdiff_t left_bytes = row * sizeof(Half), right_bytes = 2 * channels * sizeof(Half);
    const auto shift = [&](int tap) { return static_cast<std::ptrdiff_t>(tap / 3 - 1) * line + tap % 3 - 1; };
    if (channels == kTile) {
      for (int tap = 0; tap < 9; tap += 3, sums += 3 * kTile * kTile) {
        constexpr int kSize = kTile * kTile;
        Begin<0>(sums, 64, fresh);
        Begin<1>(sums + kSize, 64, fresh);
        Begin<2>(sums + 2 * kSize, 64, fresh);
        const Half* x = left + shift(tap);
        const Half* g = right;
        for (int k = 0; k < chunks; ++k, x += kTileDepth, g += kTileDepth * channels) {
          Amx::Read<6>(g, right_bytes);
          Amx::Read<3>(x, left_bytes);
          Amx::Add<0, 3, 6>();
          Amx::Read<4>(x + 1, left_bytes);
          Amx::Add<1, 4, 6>();
          Amx::Read<5>(x + 2, left_bytes);
          Amx::Add<2, 5, 6>();
        }
        Amx::Write<0>(sums, 64);
        Amx::Write<1>(sums + kSize, 64);
        Amx::Write<2>(sums + 2 * kSize, 64);
        finish.Step();
      }
      return;
    }
    const std::ptrdiff_t bytes = channels * sizeof(float), below = static_cast<std::ptrdiff_t>(kTile) * channels;
    for (int tap = 0; tap < 9; ++tap) {
      for (int k = 0; k < channels; k += 2 * kTile) {
        for (int c = 0; c < channels; c += 2 * kTile) {
          float* to = sums + (static_cast<std::ptrdiff_t>(tap) * channels + k) * channels + c;
          Begin<0>(to, bytes, fresh);
          Begin<1>(to + kTile, bytes, fresh);
          Begin<2>(to + below, bytes, fresh);
          Begin<3>(to + below + kTile, bytes, fresh);
          const Half* x = left + shift(tap) + k * row;
          const Half* g = right + 2 * c;
          for (int q = 0; q < chunks; ++q, x += kTileDepth, g += kTileDepth * channels) {
            Amx::Read<6>(g, right_bytes);
            Amx::Read<4>(x, left_bytes);
            Amx::Add<0, 4, 6>();
            Amx::Read<7>(g + 2 * kTile, right_bytes);
            Amx::Add<1, 4, 7>();
            Amx::Read<5>(x + kTile * row, left_bytes);
            Amx::Add<2, 5, 6>();
            Amx::Add<3, 5, 7>();
          }
          Amx::Write<0>(to, bytes);
          Amx::Write<1>(to + kTile, bytes);
          Amx::Write<2>(to + below, bytes);
          Amx::Write<3>(to + below + kTile, bytes);
          finish.Step();
        }
      }
    }
  }

  template <int kNumber>
  static void Begin(const float* sums, std::ptrdiff_t bytes, bool fresh) {
    fresh ? Amx::Clear<kNumber>() : Amx::Read<kNumber>(sums, bytes);
  }

  // Pixels of images one after another, to bfloat16: as `pairs` [pixels / 2, channels, 2], or, if that is null, a channel's
  // pixels side by side in `turned_`; zeros behind them.
  void Lay(const float* from, int pixels, int channels, std::ptrdiff_t row, Half* pairs) {
    alignas(64) float last[kTileDepth * kLargest];
    for (int p = 0; p < pixels + kTileDepth; p += kTileDepth) {
      const float* here = from + static_cast<std::ptrdiff_t>(p) * channels;
      if (p + kTileDepth > pixels) {  // not a whole tile of them
        const int some = std::max(pixels - p, 0) * channels;
        if (some > 0) std::memcpy(last, here, some * sizeof(float));
        std::fill(last + some, last + kTileDepth * channels, 0.0f);
        here = last;
      }
      for (int c = 0; c < channels; c += kTile) {
        if (pairs) {
          for (int j = 0; j < kTile; ++j) {
            const float* pixel = here + 2 * j * channels + c;
            Pair(pixel, pixel + channels, pairs + (static_cast<std::ptrdiff_t>(p / 2) + j) * 2 * channels + 2 * c);
          }
        } else {
          Turn(here + c, channels, turned_.memory.get() + c * row + kBefore + p, row);
        }
      }
    }
  }

#if defined(IDRC_EMULATE_AMX)
  // Two times 16 numbers, by turns.
  static void Pair(const float* one, const float* other, Half* to) {
    for (int c = 0; c < kTile; ++c) {
      to[2 * c] = ToHalf(one[c]);
      to[2 * c + 1] = ToHalf(other[c]);
    }
  }
  // 32 pixels of 16 channels.
  static void Turn(const float* from, int step, Half* to, std::ptrdiff_t row) {
    for (int c = 0; c < kTile; ++c) {
      for (int p = 0; p < kTileDepth; ++p) to[c * row + p] = ToHalf(from[p * step + c]);
    }
  }
#else
  static __m512i Paired(const float* one, const float* other) {
    const __m512i turns = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21,
                                           5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    const __m512bh both = _mm512_cvtne2ps_pbh(_mm512_loadu_ps(other), _mm512_loadu_ps(one));
    __m512i bits;
    std::memcpy(&bits, &both, sizeof bits);
    return _mm512_permutexvar_epi16(turns, bits);
  }
  static void Pair(const float* one, const float* other, Half* to) { _mm512_storeu_si512(to, Paired(one, other)); }

  static void Turn(const float* from, int step, Half* to, std::ptrdiff_t row) {
    __m512i a[16], b[16];
#pragma GCC unroll 16
    for (int j = 0; j < 16; ++j) a[j] = Paired(from + 2 * j * step, from + (2 * j + 1) * step);
    // A transposition of 16x16: by 1, 2, 4 and 8.
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) {
      b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
      b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {
#pragma GCC unroll 2
      for (int k = 0; k < 2; ++k) {
        a[i + 2 * k] = _mm512_unpacklo_epi64(b[i + k], b[i + k + 2]);
        a[i + 2 * k + 1] = _mm512_unpackhi_epi64(b[i + k], b[i + k + 2]);
      }
    }
#pragma GCC unroll 2
    for (int i = 0; i < 16; i += 8) {
#pragma GCC unroll 4
      for (int k = 0; k < 4; ++k) {
        b[i + k] = _mm512_shuffle_i32x4(a[i + k], a[i + k + 4], 0x88);
        b[i + k + 4] = _mm512_shuffle_i32x4(a[i + k], a[i + k + 4], 0xdd);
      }
    }
#pragma GCC unroll 8
    for (int k = 0; k < 8; ++k) {
      a[k] = _mm512_shuffle_i32x4(b[k], b[k + 8], 0x88);
      a[k + 8] = _mm512_shuffle_i32x4(b[k], b[k + 8], 0xdd);
    }
#pragma GCC unroll 16
    for (int c = 0; c < 16; ++c) _mm512_storeu_si512(to + c * row, a[c]);
  }
#endif

  std::vector<std::ptrdiff_t> pieces_;
  Memory filters_, images_, turned_, pairs_;
  Buffer sums_ = Zeros(2 * 4 * kTile * kTile);
};

#endif

}  // namespace
}  // namespace idrc
