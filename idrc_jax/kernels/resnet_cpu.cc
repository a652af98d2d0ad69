// A residual network for small images that keeps its activations in a core's cache.
//
// A task takes a group of images through a whole stage before the next stage begins, so that the group's activations
// and a layer's weights stay in the level-2 cache. Activations are float32, NHWC, with a border of one zero pixel.
// Batch normalisation is folded into the weights; bias, shortcut and ReLU are applied before a value is stored, and
// with `half` it is rounded to bfloat16 as it is stored. Convolutions of 3x3 and stride 1 use Winograd's minimal
// filtering F(4x4, 3x3), 36 products for 144; the others are direct. The plain-JAX twin is `models/folding.py`;
// `kernels/resnet_cpu.py` packs the weights.

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <mutex>
#include <new>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

constexpr int kLanes = 16;                       // channels that are computed together
constexpr int kTask = 8;                         // images of a task
constexpr std::size_t kCacheBytes = 400 * 1024;  // of activations at a time: a part of a level-2 cache
#ifdef __AVX512F__
constexpr int kSums = 16;  // vectors of sums that stay in registers
#else
constexpr int kSums = 4;
#endif

using Vector = float __attribute__((vector_size(64), aligned(4)));
using Bits = std::uint32_t __attribute__((vector_size(64), aligned(4)));

inline Vector Load(const float* from) { return *reinterpret_cast<const Vector*>(from); }
inline void Store(float* to, Vector value) { *reinterpret_cast<Vector*>(to) = value; }

// To the nearest bfloat16, ties to even; what is no number stays none.
inline Vector RoundToHalf(Vector value) {
  const Bits bits = (Bits)value;
  const Bits rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) & 0xffff0000u;
  return value == value ? (Vector)rounded : value;
}

// ---- Memory.

struct Release {
  void operator()(float* memory) const { ::operator delete[](memory, std::align_val_t{64}); }
};

using Buffer = std::unique_ptr<float[], Release>;

Buffer Zeros(std::size_t size) {
  auto* memory = static_cast<float*>(::operator new[](size * sizeof(float), std::align_val_t{64}));
  std::memset(memory, 0, size * sizeof(float));
  return Buffer(memory);
}

// One image's activations in one stage: height x width pixels of `channels` numbers, and their border.
struct Shape {
  int height = 0, width = 0, channels = 0;

  int Row() const { return (width + 2) * channels; }
  std::size_t Size() const { return static_cast<std::size_t>(height + 2) * Row(); }
  std::ptrdiff_t At(int y, int x) const { return static_cast<std::ptrdiff_t>(y + 1) * Row() + (x + 1) * channels; }
  Shape Halved() const { return {(height + 1) / 2, (width + 1) / 2, 2 * channels}; }
};

// ---- What becomes of a sum.

struct Layer {
  const float* weights;  // direct: [size, size, in, out]; minimal filtering: [36, out / 32, in, 32] (or 16 for 32)
  const float* bias;     // [out]
  bool relu;
  bool half;
};

// `shortcut` may be none, and may be `to`. The comparison keeps what is no number.
inline void Finish(const Layer& layer, Vector sum, int channel, const float* shortcut, float* to) {
  sum += Load(layer.bias + channel);
  if (shortcut) sum += Load(shortcut);
  if (layer.relu) sum = sum < 0.0f ? Vector{} : sum;
  Store(to, layer.half ? RoundToHalf(sum) : sum);
}

// ---- Direct convolution.

// A row of output pixels: kPixels at a time, 16 * kVectors channels at a time.
template <int kSize, int kStride, int kPixels, int kVectors>
void ConvolveRow(const Layer& layer, const float* from, Shape in, int y, Shape out, const float* shortcut, float* to) {
  for (int c = 0; c < out.channels; c += kVectors * kLanes) {
    for (int x = 0; x < out.width; x += kPixels) {
      Vector sum[kPixels][kVectors] = {};
      const float* weights = layer.weights + c;
      for (int ky = 0; ky < kSize; ++ky) {
        for (int kx = 0; kx < kSize; ++kx) {
          const float* tap = from + in.At(y * kStride - kSize / 2 + ky, x * kStride - kSize / 2 + kx);
          for (int k = 0; k < in.channels; ++k, weights += out.channels) {
#pragma GCC unroll 16
            for (int p = 0; p < kPixels; ++p) {
#pragma GCC unroll 2
              for (int v = 0; v < kVectors; ++v) {
                sum[p][v] += Load(weights + v * kLanes) * tap[p * kStride * in.channels + k];
              }
            }
          }
        }
      }
#pragma GCC unroll 16
      for (int p = 0; p < kPixels; ++p) {
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) {
          const std::ptrdiff_t at = out.At(y, x + p) + c + v * kLanes;
          Finish(layer, sum[p][v], c + v * kLanes, shortcut ? shortcut + at : nullptr, to + at);
        }
      }
    }
  }
}

template <int kSize, int kStride>
void Convolve(const Layer& layer, const float* from, Shape in, Shape out, const float* shortcut, float* to) {
  const bool narrow = out.channels == kLanes;
  auto* row = narrow ? ConvolveRow<kSize, kStride, 1, 1> : ConvolveRow<kSize, kStride, 1, 2>;
  if (narrow && out.width % kSums == 0) {
    row = ConvolveRow<kSize, kStride, kSums, 1>;
  } else if (out.width % (kSums / 2) == 0) {
    row = narrow ? ConvolveRow<kSize, kStride, kSums / 2, 1> : ConvolveRow<kSize, kStride, kSums / 2, 2>;
  }
  for (int y = 0; y < out.height; ++y) row(layer, from, in, y, out, shortcut, to);
}

// ---- Minimal filtering: a tile of 4x4 outputs from 6x6 products a pair of channels (Lavin and Gray 2016).

class Winograd {
 public:
  static constexpr int kTile = 4, kSide = 6, kPositions = kSide * kSide;
  static constexpr int kBlock = 16;  // tiles that are multiplied together

  static bool Fits(Shape shape) { return shape.height % kTile == 0 && shape.width % kTile == 0; }
  static std::size_t Scratch(int channels) { return 2 * static_cast<std::size_t>(kPositions) * kBlock * channels; }

  // The same layer for `count` images that lie one after another.
  template <int kChannels>
  static void Run(const Layer& layer, const float* from, Shape shape, int count, const float* shortcut, float* to,
                  float* scratch) {
    constexpr int kStep = kBlock * kChannels;
    float* transformed = scratch;
    float* products = scratch + kPositions * kStep;
    const int across = shape.width / kTile, tiles = across * (shape.height / kTile);
    std::ptrdiff_t at[kBlock];  // of a tile's first pixel
    for (int first = 0; first < count * tiles; first += kBlock) {
      const int block = std::min(kBlock, count * tiles - first);
      for (int t = 0; t < block; ++t) {
        const int image = (first + t) / tiles, tile = (first + t) % tiles;
        at[t] = image * shape.Size() + shape.At(tile / across * kTile, tile % across * kTile);
        const float* corner = from + at[t] - shape.Row() - shape.channels;
        Transform<kChannels>(corner, shape.Row(), transformed + t * kChannels);
      }
      for (int p = 0; p < kPositions; ++p) {
        const float* weights = layer.weights + p * kChannels * kChannels;
        Multiply<kChannels>(transformed + p * kStep, weights, products + p * kStep, block);
      }
      for (int t = 0; t < block; ++t) {
        const float* before = shortcut ? shortcut + at[t] : nullptr;
        Gather<kChannels>(layer, products + t * kChannels, shape.Row(), before, to + at[t]);
      }
    }
  }

 private:
  static void Input(const Vector (&d)[kSide], Vector (&v)[kSide]) {
    const Vector a = d[4] - 4.0f * d[2], b = d[3] - 4.0f * d[1], c = d[4] - d[2], e = 2.0f * (d[3] - d[1]);
    v[0] = 4.0f * d[0] - 5.0f * d[2] + d[4];
    v[1] = a + b;
    v[2] = a - b;
    v[3] = c + e;
    v[4] = c - e;
    v[5] = 4.0f * d[1] - 5.0f * d[3] + d[5];
  }

  static void Output(const Vector (&m)[kSide], Vector (&y)[kTile]) {
    const Vector a = m[1] + m[2], b = m[1] - m[2], c = m[3] + m[4], e = m[3] - m[4];
    y[0] = m[0] + a + c;
    y[1] = b + 2.0f * e;
    y[2] = a + 4.0f * c;
    y[3] = b + 8.0f * e + m[5];
  }

  template <int kChannels>
  static void Transform(const float* from, int row, float* to) {
    for (int c = 0; c < kChannels; c += kLanes) {
      Vector half[kSide][kSide];
#pragma GCC unroll 6
      for (int y = 0; y < kSide; ++y) {
        Vector pixels[kSide];
#pragma GCC unroll 6
        for (int x = 0; x < kSide; ++x) pixels[x] = Load(from + y * row + x * kChannels + c);
        Input(pixels, half[y]);
      }
#pragma GCC unroll 6
      for (int x = 0; x < kSide; ++x) {
        Vector column[kSide], result[kSide];
#pragma GCC unroll 6
        for (int y = 0; y < kSide; ++y) column[y] = half[y][x];
        Input(column, result);
#pragma GCC unroll 6
        for (int y = 0; y < kSide; ++y) Store(to + (y * kSide + x) * kBlock * kChannels + c, result[y]);
      }
    }
  }

  template <int kChannels>
  static void Multiply(const float* tiles, const float* weights, float* products, int block) {
    constexpr int kVectors = kChannels == kLanes ? 1 : 2;
    constexpr int kRows = kSums / kVectors;
    for (int c = 0; c < kChannels; c += kVectors * kLanes, weights += kChannels * kVectors * kLanes) {
      for (int t = 0; t < block; t += kRows) {
        Vector sum[kRows][kVectors] = {};
        const float* from = tiles + t * kChannels;
#pragma GCC unroll 2
        for (int k = 0; k < kChannels; ++k) {
#pragma GCC unroll 16
          for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
            for (int v = 0; v < kVectors; ++v) {
              sum[r][v] += Load(weights + (k * kVectors + v) * kLanes) * from[r * kChannels + k];
            }
          }
        }
#pragma GCC unroll 16
        for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
          for (int v = 0; v < kVectors; ++v) Store(products + (t + r) * kChannels + c + v * kLanes, sum[r][v]);
        }
      }
    }
  }

  template <int kChannels>
  static void Gather(const Layer& layer, const float* products, int row, const float* shortcut, float* to) {
    for (int c = 0; c < kChannels; c += kLanes) {
      Vector half[kTile][kSide];
#pragma GCC unroll 6
      for (int x = 0; x < kSide; ++x) {
        Vector column[kSide], result[kTile];
#pragma GCC unroll 6
        for (int y = 0; y < kSide; ++y) column[y] = Load(products + (y * kSide + x) * kBlock * kChannels + c);
        Output(column, result);
#pragma GCC unroll 4
        for (int y = 0; y < kTile; ++y) half[y][x] = result[y];
      }
#pragma GCC unroll 4
      for (int y = 0; y < kTile; ++y) {
        Vector result[kTile];
        Output(half[y], result);
#pragma GCC unroll 4
        for (int x = 0; x < kTile; ++x) {
          const std::ptrdiff_t at = y * row + x * kChannels + c;
          Finish(layer, result[x], c, shortcut ? shortcut + at : nullptr, to + at);
        }
      }
    }
  }
};

// ---- The network.

struct Block {
  Layer first, second, projection;  // no projection: its weights are null
};

struct Stage {
  Shape shape;
  int group;  // images that go through the stage together
  std::vector<Block> blocks;
};

// Reads the packed weights in order; every tensor begins at a multiple of 16 numbers.
class Reader {
 public:
  explicit Reader(const float* from) : from_(from) {}

  const float* Take(std::size_t size) {
    const float* tensor = from_ + taken_;
    taken_ += (size + kLanes - 1) / kLanes * kLanes;
    return tensor;
  }
  Layer TakeLayer(std::size_t size, int channels, bool relu, bool half) {
    const float* weights = Take(size);
    return {weights, Take(channels), relu, half};
  }
  std::size_t taken() const { return taken_; }

 private:
  const float* from_;
  std::size_t taken_ = 0;
};

struct Network {
  Shape image;
  int classes;
  bool half;
  const float *mean, *inverse_std, *head, *head_bias;
  Layer stem;
  std::vector<Stage> stages;
  std::size_t taken;  // numbers that the weights must have

  Network(const float* weights, Shape image, int classes, int blocks, bool projection, bool half)
      : image(image), classes(classes), half(half) {
    Reader reader(weights);
    mean = reader.Take(image.channels);
    inverse_std = reader.Take(image.channels);
    stem = reader.TakeLayer(9 * image.channels * kLanes, kLanes, true, half);
    Shape shape{image.height, image.width, kLanes};
    for (int s = 0; s < 3; ++s) {
      if (s > 0) shape = shape.Halved();
      const std::size_t per_image = 2 * shape.Size() * sizeof(float);
      const int group = static_cast<int>(std::clamp<std::size_t>(kCacheBytes / per_image, 1, kTask));
      Stage stage{shape, group, {}};
      const std::size_t full = shape.channels * shape.channels * (Winograd::Fits(shape) ? Winograd::kPositions : 9);
      for (int b = 0; b < blocks; ++b) {
        const bool enters = s > 0 && b == 0;
        const std::size_t halved = shape.channels * shape.channels / 2;
        Block block{};
        block.first = reader.TakeLayer(enters ? 9 * halved : full, shape.channels, true, half);
        block.second = reader.TakeLayer(full, shape.channels, true, half);
        if (enters && projection) block.projection = reader.TakeLayer(halved, shape.channels, false, half);
        stage.blocks.push_back(block);
      }
      stages.push_back(std::move(stage));
    }
    head = reader.Take(shape.channels * classes);
    head_bias = reader.Take(classes);
    taken = reader.taken();
  }
};

// Takes tasks of up to kTask images through the network, in memory of its own.
class Worker {
 public:
  explicit Worker(const Network& network)
      : network_(network), input_(Zeros(network.image.Size())), scratch_(Zeros(Winograd::Scratch(64))) {
    for (const Stage& stage : network.stages) {
      const int images = &stage == &network.stages.back() ? kTask : stage.group;
      now_.push_back(Zeros(images * stage.shape.Size()));
      between_.push_back(Zeros(images * stage.shape.Size()));
    }
  }

  void Run(const float* images, int count, float* logits) {
    const int group = network_.stages[1].group;
    for (int start = 0; start < count; start += group) {
      const int some = std::min(group, count - start);
      for (int i = 0; i < some; ++i) {
        Normalise(images + static_cast<std::size_t>(start + i) * PixelCount());
        Convolve<3, 1>(network_.stem, input_.get(), network_.image, network_.stages[0].shape, nullptr,
                       now_[0].get());
        Blocks(0, 0, 1);
        Enter(1, 0, i);
      }
      Blocks(1, 0, some);
      for (int i = 0; i < some; ++i) Enter(2, i, start + i);
    }
    for (int start = 0; start < count; start += network_.stages[2].group) {
      Blocks(2, start, std::min(network_.stages[2].group, count - start));
    }
    for (int i = 0; i < count; ++i) Head(i, logits + static_cast<std::size_t>(i) * network_.classes);
  }

 private:
  std::size_t PixelCount() const {
    return static_cast<std::size_t>(network_.image.height) * network_.image.width * network_.image.channels;
  }

  void Normalise(const float* image) {
    const Shape& shape = network_.image;
    for (int y = 0; y < shape.height; ++y) {
      float* to = input_.get() + shape.At(y, 0);
      for (int x = 0; x < shape.width; ++x) {
        for (int c = 0; c < shape.channels; ++c, ++image, ++to) {
          *to = (*image - network_.mean[c]) * network_.inverse_std[c];
          if (network_.half) *to = RoundToHalf(Vector{*to})[0];
        }
      }
    }
  }

  // From one image's end of a stage to the middle of the next stage's first block, and its shortcut.
  void Enter(int s, int from_slot, int slot) {
    const Shape in = network_.stages[s - 1].shape, out = network_.stages[s].shape;
    const Block& block = network_.stages[s].blocks.front();
    const float* from = now_[s - 1].get() + from_slot * in.Size();
    float* shortcut = now_[s].get() + slot * out.Size();
    Convolve<3, 2>(block.first, from, in, out, nullptr, between_[s].get() + slot * out.Size());
    if (block.projection.weights) {
      Convolve<1, 2>(block.projection, from, in, out, nullptr, shortcut);
      return;
    }
    for (int y = 0; y < out.height; ++y) {
      for (int x = 0; x < out.width; ++x) {
        float* pixel = shortcut + out.At(y, x);
        std::fill_n(pixel, out.channels, 0.0f);
        std::copy_n(from + in.At(2 * y, 2 * x), in.channels, pixel + in.channels / 2);
      }
    }
  }

  void Blocks(int s, int slot, int count) {
    const Stage& stage = network_.stages[s];
    float* now = now_[s].get() + slot * stage.shape.Size();
    float* between = between_[s].get() + slot * stage.shape.Size();
    for (const Block& block : stage.blocks) {
      const bool entered = s > 0 && &block == &stage.blocks.front();
      if (!entered) Square(block.first, now, stage.shape, count, nullptr, between);
      Square(block.second, between, stage.shape, count, now, now);
    }
  }

  // A convolution of 3x3 that keeps the shape.
  void Square(const Layer& layer, const float* from, Shape shape, int count, const float* shortcut, float* to) {
    if (Winograd::Fits(shape)) {
      auto* run = shape.channels == 16   ? Winograd::Run<16>
                  : shape.channels == 32 ? Winograd::Run<32>
                                         : Winograd::Run<64>;
      run(layer, from, shape, count, shortcut, to, scratch_.get());
      return;
    }
    for (int i = 0; i < count; ++i) {
      const std::size_t at = i * shape.Size();
      Convolve<3, 1>(layer, from + at, shape, shape, shortcut ? shortcut + at : nullptr, to + at);
    }
  }

  void Head(int slot, float* logits) {
    const Shape& shape = network_.stages.back().shape;
    const float* from = now_.back().get() + slot * shape.Size();
    std::vector<float> mean(shape.channels);
    for (int y = 0; y < shape.height; ++y) {
      for (int x = 0; x < shape.width; ++x) {
        for (int c = 0; c < shape.channels; ++c) mean[c] += from[shape.At(y, x) + c];
      }
    }
    std::copy_n(network_.head_bias, network_.classes, logits);
    for (int c = 0; c < shape.channels; ++c) {
      const float value = mean[c] / static_cast<float>(shape.height * shape.width);
      for (int k = 0; k < network_.classes; ++k) logits[k] += value * network_.head[c * network_.classes + k];
    }
  }

  const Network& network_;
  Buffer input_, scratch_;
  std::vector<Buffer> now_, between_;  // a stage's activations, and those in the middle of a block
};

// Tasks are dealt to the calling thread and the pool's; it returns when all are done, whoever did them.
void ForEachTask(ffi::ThreadPool& pool, int tasks, const Network& network, const float* images, int count,
                 float* logits) {
  struct Shared {
    std::atomic<int> next{0};
    std::mutex mutex;
    std::condition_variable finished;
    int done = 0;
  };
  auto shared = std::make_shared<Shared>();
  // A helper that begins after the last task was taken touches nothing but `shared`.
  auto work = [shared, tasks, &network, images, count, logits] {
    std::unique_ptr<Worker> worker;
    for (int task; (task = shared->next++) < tasks;) {
      if (!worker) worker = std::make_unique<Worker>(network);
      const std::size_t first = static_cast<std::size_t>(task) * kTask;
      const std::size_t pixels =
          static_cast<std::size_t>(network.image.height) * network.image.width * network.image.channels;
      worker->Run(images + first * pixels, std::min<int>(kTask, count - static_cast<int>(first)),
                  logits + first * network.classes);
      std::lock_guard<std::mutex> lock(shared->mutex);
      if (++shared->done == tasks) shared->finished.notify_one();
    }
  };
  const int helpers = std::min<int>(static_cast<int>(pool.num_threads()), tasks) - 1;
  for (int i = 0; i < helpers; ++i) pool.Schedule(decltype(work)(work));
  work();
  std::unique_lock<std::mutex> lock(shared->mutex);
  shared->finished.wait(lock, [&] { return shared->done == tasks; });
}

ffi::Error Classify(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> images, ffi::Buffer<ffi::F32> weights,
                    ffi::ResultBuffer<ffi::F32> logits, std::int64_t blocks, bool projection, bool half) {
  const auto size = images.dimensions();
  if (size.size() != 4 || logits->dimensions().size() != 2 || logits->dimensions()[0] != size[0]) {
    return ffi::Error::InvalidArgument("Expected images [N, H, W, C] and logits [N, classes].");
  }
  const Shape image{static_cast<int>(size[1]), static_cast<int>(size[2]), static_cast<int>(size[3])};
  const Network network(weights.typed_data(), image, static_cast<int>(logits->dimensions()[1]),
                        static_cast<int>(blocks), projection, half);
  if (weights.element_count() != network.taken) {
    return ffi::Error::InvalidArgument("Expected as many weights as the network has.");
  }
  const int count = static_cast<int>(size[0]);
  ForEachTask(pool, (count + kTask - 1) / kTask, network, images.typed_data(), count, logits->typed_data());
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(IdrcResnet, Classify,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Attr<std::int64_t>("blocks")
                                  .Attr<bool>("projection")
                                  .Attr<bool>("half"));
