// The network in bfloat16 by the tiles of AMX: activations are kept in bfloat16, a convolution is direct, a tile 16 pixels
// of 32 numbers under the window times their weights. It rounds where the vectors' way does.

#pragma once

#include <algorithm>
#include <cstddef>
#include <cmath>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

#include "amx.h"
#include "resnet/network.h"

#if defined(IDRC_HAS_AMX)

namespace idrc {
namespace {

struct ReleaseHalves {
  void operator()(Half* memory) const { ::operator delete[](memory, std::align_val_t{64}); }
};

using Halves = std::unique_ptr<Half[], ReleaseHalves>;

inline Halves ZeroHalves(std::size_t size) {
  Halves memory(static_cast<Half*>(::operator new[](size * sizeof(Half), std::align_val_t{64})));
  std::memset(memory.get(), 0, size * sizeof(Half));
  return memory;
}

// Activations of images side by side, so that a row of pixels fills tiles: a place is a pixel of one image. Zeros around
// them, and behind them for the tiles that read on.
struct Field {
  int height, width, channels, images;

  int Places() const { return width * images; }
  std::ptrdiff_t Row() const { return static_cast<std::ptrdiff_t>(width + 2) * images * channels; }
  std::ptrdiff_t Size() const { return (height + 2) * Row() + kTileDepth; }
  std::ptrdiff_t At(int y, int x, int image = 0) const {
    return (y + 1) * Row() + static_cast<std::ptrdiff_t>((x + 1) * images + image) * channels;
  }
};

// What a tile reads: where its first row begins, from the place of its first sum, and which rows of the layer's weights
// its 32 numbers are multiplied with, -1 for none.
struct Piece {
  std::ptrdiff_t at;
  int rows[kTileDepth];
};

struct AmxLayer {
  std::vector<std::ptrdiff_t> at;
  Halves weights;  // [columns / 16, pieces, 16, 16, 2]
  const float* bias;
  int columns;
  bool relu;

  AmxLayer(const Layer& layer, int columns, const std::vector<Piece>& pieces)
      : weights(ZeroHalves(pieces.size() * kTileDepth * columns)), bias(layer.bias), columns(columns), relu(layer.relu) {
    Half* to = weights.get();
    for (int first = 0; first < columns; first += kTile) {
      for (const Piece& piece : pieces) {
        for (int k = 0; k < kTileDepth; ++k) {
          for (int c = 0; c < kTile; ++c) {
            Half& place = to[k / 2 * kTileDepth + 2 * c + k % 2];
            place = piece.rows[k] < 0 ? 0 : ToHalf(layer.weights[piece.rows[k] * columns + first + c]);
          }
        }
        to += kTileDepth * kTile;
      }
    }
    for (const Piece& piece : pieces) at.push_back(piece.at);
  }
};

// The layers of a network as tiles need them, made once a call.
class AmxNetwork {
 public:
  struct Stage {
    Field field, part;  // part: every other pixel of every other row of the stage before
    std::vector<AmxLayer> layers, projection;
  };

  explicit AmxNetwork(const Network& network)
      : network(network), stem(network.stem, kNarrow, Stem(network.image)) {
    for (const idrc::Stage& stage : network.stages) {
      const Shape shape = stage.shape;
      const int images = shape.width % kTile == 0 ? 1 : 2;
      Stage made{{shape.height, shape.width, shape.channels, images}, {}, {}, {}};
      made.part = made.field;
      made.part.channels /= 2;
      for (const Block& block : stage.blocks) {
        const bool enters = !stages.empty() && &block == &stage.blocks.front();
        made.layers.emplace_back(block.first, shape.channels, enters ? Strided(made.part) : Square(made.field));
        made.layers.emplace_back(block.second, shape.channels, Square(made.field));
        if (block.projection.weights) {
          std::vector<Piece> pieces;
          Tap(0, 0, made.part.channels, &pieces);
          made.projection.emplace_back(block.projection, shape.channels, pieces);
        }
      }
      stages.push_back(std::move(made));
    }
  }

  static bool Serves(const Network& network) {
    const Shape& image = network.image;
    return network.half && Amx::Usable() && image.width % 32 == 0 && image.height % 4 == 0 &&
           3 * image.channels <= kTileDepth;
  }

  const Network& network;
  AmxLayer stem;
  std::vector<Stage> stages;

 private:
  // `count` rows of weights from `first`, no more than a tile has.
  static Piece Filled(std::ptrdiff_t at, int first, int count) {
    Piece piece{at, {}};
    for (int k = 0; k < kTileDepth; ++k) piece.rows[k] = k < count ? first + k : -1;
    return piece;
  }

  static void Tap(std::ptrdiff_t at, int tap, int channels, std::vector<Piece>* pieces) {
    for (int c = 0; c < channels; c += kTileDepth) {
      pieces->push_back(Filled(at + c, tap * channels + c, std::min(channels - c, kTileDepth)));
    }
  }

  // A row of a window has fewer numbers than a tile, which begins with it.
  static std::vector<Piece> Stem(const Shape& image) {
    std::vector<Piece> pieces;
    for (int ky = 0; ky < 3; ++ky) {
      pieces.push_back(Filled((ky - 1) * image.Row() - image.channels, 3 * ky * image.channels, 3 * image.channels));
    }
    return pieces;
  }

  // Two taps of 16 channels that lie side by side.
  static Piece Two(std::ptrdiff_t at, int tap, int other) {
    Piece piece{at, {}};
    for (int k = 0; k < kTileDepth; ++k) piece.rows[k] = (k < kNarrow ? tap : other) * kNarrow + k % kNarrow;
    return piece;
  }

  static std::vector<Piece> Square(const Field& field) {
    const std::ptrdiff_t pixel = static_cast<std::ptrdiff_t>(field.images) * field.channels;
    std::vector<Piece> pieces;
    for (int ky = 0; ky < 3; ++ky) {
      const std::ptrdiff_t row = (ky - 1) * field.Row();
      if (field.channels == kNarrow) {  // one image a field
        pieces.push_back(Two(row - pixel, 3 * ky, 3 * ky + 1));
        Tap(row + pixel, 3 * ky + 2, kNarrow, &pieces);
        continue;
      }
      for (int kx = 0; kx < 3; ++kx) Tap(row + (kx - 1) * pixel, 3 * ky + kx, field.channels, &pieces);
    }
    return pieces;
  }

  // Of the four parts, by y % 2 and x % 2: a tap's row and column say which part, and whether the place before.
  static std::vector<Piece> Strided(const Field& part) {
    const std::ptrdiff_t pixel = static_cast<std::ptrdiff_t>(part.images) * part.channels;
    std::vector<Piece> pieces;
    for (int ky = 0; ky < 3; ++ky) {
      const std::ptrdiff_t row = (ky == 1 ? 0 : 2) * part.Size() - (ky == 0 ? part.Row() : 0);
      if (part.channels == kNarrow) {
        pieces.push_back(Two(row + part.Size() - pixel, 3 * ky, 3 * ky + 2));
        Tap(row, 3 * ky + 1, kNarrow, &pieces);
        continue;
      }
      for (int kx = 0; kx < 3; ++kx) {
        Tap(row + (kx == 1 ? 0 : part.Size()) - (kx == 0 ? pixel : 0), 3 * ky + kx, part.channels, &pieces);
      }
    }
    return pieces;
  }
};

// Takes tasks of up to kTask images through the network, in memory of its own.
class AmxWorker {
 public:
  explicit AmxWorker(const AmxNetwork& network)
      : network_(network), image_(ZeroHalves(network.network.image.Size() + kTileDepth)), sums_(Zeros(2 * kSums)) {
    const Shape& image = network.network.image;
    for (int i = 0; i < image.width * image.channels; ++i) {
      mean_.push_back(network.network.mean[i % image.channels]);
      inverse_std_.push_back(network.network.inverse_std[i % image.channels]);
    }
    for (const AmxNetwork::Stage& stage : network.stages) {
      now_.push_back(ZeroHalves(Fields(stage) * stage.field.Size()));
      between_.push_back(ZeroHalves(kApart + Fields(stage) * stage.field.Size()));
      parts_.push_back(ZeroHalves(4 * Fields(stage) * stage.part.Size()));
    }
  }

  void Run(const float* images, int count, float* logits) {
    const Amx held;
    const std::ptrdiff_t pixels = network_.network.Pixels();
    for (int i = 0; i < count; ++i) {
      Stem(images + i * pixels);
      Blocks(0, 1);
      Part(1, 0);
      Enter(1, 1);
      Blocks(1, 1);
      Part(2, i);
    }
    const int side_by_side = network_.stages[2].field.images, fields = (count + side_by_side - 1) / side_by_side;
    Enter(2, fields);
    Blocks(2, fields);
    for (int i = 0; i < count; ++i) Head(i, logits + static_cast<std::ptrdiff_t>(i) * network_.network.classes);
  }

 private:
  // Where one of two arrays begins that are read and written by turns, so that a store at a place and a load from the same
  // place of the other never differ by a multiple of 4096 bytes, which a processor takes for the same address.
  static constexpr std::ptrdiff_t kApart = 1024;
  static constexpr int kSums = 4 * kTile * kTile;  // of the tiles that are made together

  // Fields of a stage that are in memory: of a whole task in the last stage, whose weights are many.
  int Fields(const AmxNetwork::Stage& stage) const {
    return &stage == &network_.stages.back() ? (kTask + stage.field.images - 1) / stage.field.images : 1;
  }

  void Stem(const float* pixels) {
    const Network& network = network_.network;
    const Shape& image = network.image;
    const int numbers = image.width * image.channels;
    for (int y = 0; y < image.height; ++y, pixels += numbers) {
      Half* __restrict to = image_.get() + image.At(y, 0);
      for (int i = 0; i < numbers; ++i) to[i] = ToHalf((pixels[i] - mean_[i]) * inverse_std_[i]);
    }
    Convolve(network_.stem, image_.get() + image.At(0, 0), image.Row(), image.channels, network_.stages[0].field,
             nullptr, now_[0].get());
  }

  // An image's end of a stage, by y % 2 and x % 2, where the next stage begins.
  void Part(int s, int image) {
    const Field& from = network_.stages[s - 1].field;
    const AmxNetwork::Stage& stage = network_.stages[s];
    const int field = image / stage.field.images, slot = image % stage.field.images;
    Half* parts = parts_[s].get() + 4 * field * stage.part.Size();
    from.channels == kNarrow ? Copy<kNarrow>(from, now_[s - 1].get(), stage.part, slot, parts)
                             : Copy<kWide>(from, now_[s - 1].get(), stage.part, slot, parts);
  }

  template <int kChannels>
  static void Copy(const Field& from, const Half* values, const Field& part, int slot, Half* parts) {
    for (int y = 0; y < from.height; ++y) {
      const Half* pixel = values + from.At(y, 0);
      for (int x = 0; x < from.width; ++x, pixel += kChannels) {
        std::memcpy(parts + (y % 2 * 2 + x % 2) * part.Size() + part.At(y / 2, x / 2, slot), pixel,
                    kChannels * sizeof(Half));
      }
    }
  }

  // The first convolution of a stage, and its shortcut.
  void Enter(int s, int fields) {
    const AmxNetwork::Stage& stage = network_.stages[s];
    const Field &part = stage.part, &field = stage.field;
    for (int f = 0; f < fields; ++f) {
      const Half* from = parts_[s].get() + 4 * f * part.Size();
      Half* now = now_[s].get() + f * field.Size();
      Convolve(stage.layers[0], from + part.At(0, 0), part.Row(), part.channels, field, nullptr,
               between_[s].get() + kApart + f * field.Size());
      if (!stage.projection.empty()) {
        Convolve(stage.projection[0], from + part.At(0, 0), part.Row(), part.channels, field, nullptr, now);
        continue;
      }
      for (int y = 0; y < field.height; ++y) {
        for (int place = 0; place < field.Places(); ++place) {
          Half* to = now + field.At(y, 0) + place * field.channels;
          std::fill_n(to, field.channels, Half{0});
          std::copy_n(from + part.At(y, 0) + place * part.channels, part.channels, to + part.channels / 2);
        }
      }
    }
  }

  // The rest of a stage, layer by layer.
  void Blocks(int s, int fields) {
    const AmxNetwork::Stage& stage = network_.stages[s];
    const Field& field = stage.field;
    const std::ptrdiff_t origin = field.At(0, 0);
    for (std::size_t layer = s > 0 ? 1 : 0; layer < stage.layers.size(); ++layer) {
      const bool second = layer % 2 == 1;
      for (int f = 0; f < fields; ++f) {
        Half* now = now_[s].get() + f * field.Size();
        Half* between = between_[s].get() + kApart + f * field.Size();
        Convolve(stage.layers[layer], (second ? between : now) + origin, field.Row(), field.channels, field,
                 second ? now : nullptr, second ? now : between);
      }
    }
  }

  void Head(int image, float* logits) {
    const Network& network = network_.network;
    const Field& field = network_.stages[2].field;
    const Half* from = now_[2].get() + image / field.images * field.Size();
    std::vector<float> mean(field.channels);
    for (int y = 0; y < field.height; ++y) {
      for (int x = 0; x < field.width; ++x) {
        const Half* pixel = from + field.At(y, x, image % field.images);
        for (int c = 0; c < field.channels; ++c) mean[c] += FromHalf(pixel[c]);
      }
    }
    std::copy_n(network.head_bias, network.classes, logits);
    for (int c = 0; c < field.channels; ++c) {
      const float value = mean[c] / static_cast<float>(field.height * field.width);
      for (int k = 0; k < network.classes; ++k) logits[k] += value * network.head[c * network.classes + k];
    }
  }

  static constexpr int kPart = 8;  // places of a tile that are finished together

  // Tiles of sums that are made and wait to be finished, part by part while the next are made.
  struct Waiting {
    const float* sums = nullptr;
    const Half* shortcut = nullptr;
    Half* to = nullptr;
    std::ptrdiff_t at[4] = {};  // of each tile
    int columns[4] = {};
    int part = 0, parts = 0;
  };

  // A layer of all places of a field: `from` is what belongs to its first place, a row `row` further, a place `step`.
  // `shortcut` may be none, and may be `to`.
  void Convolve(const AmxLayer& layer, const Half* from, std::ptrdiff_t row, std::ptrdiff_t step, const Field& field,
                const Half* shortcut, Half* to) {
    const int across = field.Places() / kTile, tiles = across * field.height;
    const bool narrow = layer.columns == kTile;
    const int wide = narrow ? kTile : 2 * kTile;
    Waiting waiting;
    int buffer = 0;
    for (int first = 0, count; first < tiles; first += count) {
      count = narrow ? 4 : std::min(2, tiles - first);
      const Half* left[4];
      std::ptrdiff_t at[4];
      for (int t = 0; t < count; ++t) {
        const int y = (first + t) / across, place = (first + t) % across * kTile;
        left[t] = from + y * row + place * step;
        at[t] = field.At(y, 0) + static_cast<std::ptrdiff_t>(place) * field.channels;
      }
      auto* run = narrow ? Multiply<4, 1> : count == 2 ? Multiply<2, 2> : Multiply<1, 2>;
      for (int column = 0; column < layer.columns; column += wide) {
        float* sums = sums_.get() + buffer * kSums;
        buffer = 1 - buffer;
        run(layer, left, step, column, sums, field.channels, waiting);
        waiting = {sums, shortcut, to, {}, {}, 0, count * wide / kPart};
        int made = 0;
        for (int t = 0; t < count; ++t) {
          for (int c = column; c < column + wide; c += kTile, ++made) {
            waiting.columns[made] = c;
            waiting.at[made] = at[t] + c;
          }
        }
      }
    }
    Finish(layer, waiting.parts, field.channels, waiting);
  }

  // Sums [kRows, kColumns, 16, 16] of so many tiles of places and of columns; meanwhile finishes those that wait.
  template <int kRows, int kColumns>
  static void Multiply(const AmxLayer& layer, const Half* const* left, std::ptrdiff_t step, int column, float* sums,
                       int channels, Waiting& waiting) {
    const int pieces = static_cast<int>(layer.at.size()), at_once = (waiting.parts + pieces - 1) / pieces;
    const std::ptrdiff_t bytes = step * sizeof(Half), tile = kTileDepth * kTile;
    const Half* right = layer.weights.get() + column / kTile * pieces * tile;
    const Half* other = right + pieces * tile;
    Amx::Clear<0>();
    Amx::Clear<1>();
    Amx::Clear<2>();
    Amx::Clear<3>();
    for (int k = 0; k < pieces; ++k, right += tile, other += tile) {
      const std::ptrdiff_t at = layer.at[k];
      Amx::Read<6>(right, 64);
      Amx::Read<4>(left[0] + at, bytes);
      Amx::Add<0, 4, 6>();
      if constexpr (kColumns == 2) {
        Amx::Read<7>(other, 64);
        Amx::Add<1, 4, 7>();
        if constexpr (kRows == 2) {
          Amx::Read<5>(left[1] + at, bytes);
          Amx::Add<2, 5, 6>();
          Amx::Add<3, 5, 7>();
        }
      } else {
        Amx::Read<5>(left[1] + at, bytes);
        Amx::Add<1, 5, 6>();
        Amx::Read<4>(left[2] + at, bytes);
        Amx::Add<2, 4, 6>();
        Amx::Read<5>(left[3] + at, bytes);
        Amx::Add<3, 5, 6>();
      }
      Finish(layer, at_once, channels, waiting);
    }
    constexpr int kSize = kTile * kTile;
    Amx::Write<0>(sums);
    Amx::Write<1>(sums + kSize);
    if constexpr (kRows * kColumns == 4) {
      Amx::Write<2>(sums + 2 * kSize);
      Amx::Write<3>(sums + 3 * kSize);
    }
  }

  // Some more parts.
  static void Finish(const AmxLayer& layer, int parts, int channels, Waiting& waiting) {
    for (const int end = std::min(waiting.part + parts, waiting.parts); waiting.part < end; ++waiting.part) {
      const int tile = waiting.part * kPart / kTile;
      const std::ptrdiff_t at = waiting.at[tile] + waiting.part * kPart % kTile * channels;
      const float* sums = waiting.sums + waiting.part * kPart * kTile;
      const float* bias = layer.bias + waiting.columns[tile];
      if (waiting.shortcut) {
        FinishPart<true>(sums, bias, layer.relu, channels, waiting.shortcut + at, waiting.to + at);
      } else {
        FinishPart<false>(sums, bias, layer.relu, channels, nullptr, waiting.to + at);
      }
    }
  }

#if defined(IDRC_EMULATE_AMX)
  template <bool kAdds>
  static void FinishPart(const float* sums, const float* bias, bool relu, int channels, const Half* shortcut, Half* to) {
    for (int r = 0; r < kPart; ++r, sums += kTile, to += channels) {
      for (int c = 0; c < kTile; ++c) {
        const float sum = sums[c] + bias[c] + (kAdds ? FromHalf(shortcut[r * channels + c]) : 0.0f);
        to[c] = ToHalf(relu && sum < 0.0f ? 0.0f : sum);
      }
    }
  }
#else
  template <bool kAdds>
  static void FinishPart(const float* sums, const float* bias, bool relu, int channels, const Half* shortcut, Half* to) {
    const __m512 add = _mm512_loadu_ps(bias), least = _mm512_set1_ps(relu ? 0.0f : -INFINITY);
#pragma GCC unroll 8
    for (int r = 0; r < kPart; ++r) {
      __m512 sum = _mm512_add_ps(_mm512_load_ps(sums + r * kTile), add);
      if constexpr (kAdds) {
        const auto* halves = reinterpret_cast<const __m256i*>(shortcut + r * channels);
        const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(halves));
        sum = _mm512_add_ps(sum, _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16)));
      }
      const __m256bh rounded = _mm512_cvtneps_pbh(_mm512_max_ps(least, sum));  // what is no number stays none
      std::memcpy(to + r * channels, &rounded, sizeof rounded);
    }
  }
#endif

  const AmxNetwork& network_;
  Halves image_;
  Buffer sums_;
  std::vector<float> mean_, inverse_std_;  // of a row of pixels
  std::vector<Halves> now_, between_, parts_;  // a stage's activations, mid-block, and what enters it
};

}  // namespace
}  // namespace idrc

#endif
