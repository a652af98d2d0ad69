// A residual network for small images in training: forward with batch statistics, and all gradients.
//
// What lies between two convolutions is done where their operands are loaded and their results stored: a convolution's
// input is normalised, joined with its shortcut and cut at 0 as it is copied to a buffer with a border, a few images at a
// time; the sums that make the batch statistics are taken as results are stored. So forward every activation is written
// once and read once by the next layer. Backward a layer's gradient, cut where the activation was 0, is stored once with
// the two sums that batch normalisation asks for, and its correction by them is made when the layer below loads it; the
// gradients of weights and of pixels are made from the same two buffers.
//
// The batch is cut into shares that do not depend on the threads, and sums are made share by share: so results are the
// same on any number of threads. Arrays are float32, NHWC; 16, 32 and 64 channels in three stages.

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <list>
#include <optional>
#include <utility>
#include <vector>

#include "direct.h"
#include "kept.h"
#include "self_test.h"
#include "tasks.h"
#include "tensor.h"
#include "winograd_training.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace idrc {
namespace {

using Array = ffi::Buffer<ffi::F32>;
using Result = ffi::ResultBuffer<ffi::F32>;

constexpr int kShares = 8;                         // of a batch
constexpr std::size_t kGroupBytes = 160 * 1024;    // of a group of images in a buffer: a part of a level-2 cache
constexpr int kGroup = 8;                          // images of a group, at most
constexpr int kLargest = 64;                       // channels
constexpr double kEpsilon = 1e-5;
constexpr float kMomentum = 0.9f;                  // the weight of a running statistic's old value

Shape Plain(Shape shape) { return {shape.height, shape.width, shape.channels, 0}; }

// ---- The network.

// A convolution and the normalisation of its results.
struct Convolution {
  Shape in, out;  // with a border
  int size, stride;
  bool filtered;  // by Winograd's minimal filtering
  const float *kernel, *scale, *bias;
  float* result;                     // [N, H, W, C]
  float *mean, *inverse, *factor;    // of the batch's results: mean, 1 / std, and scale / std
  float *slope, *offset;             // a result's gradient is factor * dy + (result - mean) * slope + offset

  std::size_t Weights() const { return static_cast<std::size_t>(size) * size * in.channels * out.channels; }
  std::size_t Sums() const { return filtered ? 4 * Weights() : Weights(); }
};

// What is normalised, added and cut at 0: the stem's results, or those of a block's second convolution and its shortcut.
struct Unit {
  int main, projection = -1;     // convolutions
  const float* input = nullptr;  // of the block, where that is the shortcut
  Shape in;                      // of that
  float* output;                 // [N, H, W, C]
};

struct Block {
  int first, second, projection = -1;
};

// Hands out parts of one piece of memory; from null, it only counts.
class Parts {
 public:
  explicit Parts(float* from) : from_(from) {}

  float* Take(std::size_t size) {
    float* part = from_ ? from_ + taken_ : nullptr;
    taken_ += (size + 15) / 16 * 16;
    return part;
  }
  std::size_t taken() const { return taken_; }

 private:
  float* from_;
  std::size_t taken_ = 0;
};

struct Network {
  int count;
  Shape image;
  const float *pixels, *image_mean, *image_inverse;
  std::vector<Convolution> convolutions;  // in the order of the arguments
  std::vector<Block> blocks;
  std::vector<Unit> units;  // the stem's, and one a block
  // Working memory.
  std::array<float*, 3> gradients;  // of a unit's sum, where it is above 0, in each stage
  float* inner;                     // the same in the middle of a block
  std::array<float*, 2> sums;       // [shares, weights]: those of this phase, and of the last
  std::size_t largest = 0;          // numbers of one share of these
  std::size_t floats = 0;

  int ShareSize() const { return (count + kShares - 1) / kShares; }
  int Shares() const { return (count + ShareSize() - 1) / ShareSize(); }
  Shape Last() const { return convolutions[units.back().main].out; }
  std::ptrdiff_t Pixels() const { return static_cast<std::ptrdiff_t>(image.height) * image.width * image.channels; }
  static int Stage(Shape shape) { return shape.channels == 16 ? 0 : shape.channels == 32 ? 1 : 2; }

  Network(int count, Shape image, int blocks_a_stage, bool projects) : count(count), image(image) {
    Shape shape{image.height, image.width, 16};
    Add(image, shape, 3, 1);
    units.push_back({0});
    for (int stage = 0; stage < 3; ++stage) {
      for (int b = 0; b < blocks_a_stage; ++b) {
        const bool enters = stage > 0 && b == 0;
        const Shape in = shape;
        if (enters) shape = shape.Halved();
        Block block{Add(in, shape, 3, enters ? 2 : 1), Add(shape, shape, 3, 1)};
        if (enters && projects) block.projection = Add(in, shape, 1, 2);
        units.push_back({block.second, block.projection, nullptr, in});
        blocks.push_back(block);
      }
    }
  }

  // Where everything lies in memory; of null, how much it needs.
  void Place(float* memory) {
    Parts parts(memory);
    largest = 0;
    std::size_t most = 0;  // numbers of an image in the middle of a block, at most
    for (Convolution& one : convolutions) {
      most = std::max(most, Plain(one.out).Size());
      one.result = parts.Take(count * Plain(one.out).Size());
      for (float** each : {&one.mean, &one.inverse, &one.factor, &one.slope, &one.offset}) {
        *each = parts.Take(one.out.channels);
      }
      largest = std::max(largest, one.Sums());
    }
    for (std::size_t u = 0; u < units.size(); ++u) {
      units[u].output = parts.Take(count * Plain(convolutions[units[u].main].out).Size());
      if (u > 0 && units[u].projection < 0) units[u].input = units[u - 1].output;
    }
    for (const Unit& unit : units) {
      const Shape shape = convolutions[unit.main].out;
      float*& gradient = gradients[Stage(shape)];
      if (&unit == &units.front() || shape.channels != convolutions[(&unit - 1)->main].out.channels) {
        gradient = parts.Take(count * Plain(shape).Size());
      }
    }
    inner = parts.Take(count * most);
    largest += 64 * 32;  // a projection's weights behind those of the convolution beside it
    for (float*& one : sums) one = parts.Take(kShares * largest);
    floats = parts.taken();
  }

 private:
  int Add(Shape in, Shape out, int size, int stride) {
    const bool filtered = !convolutions.empty() && size == 3 && stride == 1 && Winograd::Fits(in);
    convolutions.push_back({in, out, size, stride, filtered});
    return static_cast<int>(convolutions.size()) - 1;
  }
};

// ---- What happens to a vector of channels.

struct Normal {
  Vector mean, factor, bias;

  Normal(const Convolution& of, int c) : mean(Load(of.mean + c)), factor(Load(of.factor + c)), bias(Load(of.bias + c)) {}
  Vector operator()(Vector result) const { return (result - mean) * factor + bias; }
};

// The gradient with respect to a result, from that with respect to the normalised one.
struct NormalGradient {
  Vector mean, factor, slope, offset;

  NormalGradient(const Convolution& of, int c)
      : mean(Load(of.mean + c)), factor(Load(of.factor + c)), slope(Load(of.slope + c)), offset(Load(of.offset + c)) {}
  Vector operator()(Vector gradient, Vector result) const {
    return factor * gradient + (result - mean) * slope + offset;
  }
};

// Sums over pixels, [kSums, channels]: in float32 over some tiles, in float64 over a share.
template <int kSums>
class ChannelSums {
 public:
  ChannelSums(double* to, int channels) : to_(to), channels_(channels) {}

  void Add(int sum, int channel, Vector value) {
    float* at = some_[sum] + channel;
    Store(at, Load(at) + value);
  }
  void Flush() {
    for (int s = 0; s < kSums; ++s) {
      for (int c = 0; c < channels_; ++c) to_[s * kLargest + c] += some_[s][c];
      std::fill_n(some_[s], channels_, 0.0f);
    }
  }

 private:
  double* to_;
  int channels_;
  float some_[kSums][kLargest] = {};
};

// Fetches memory into the cache a little at a time, while other work is done that will soon need it.
class Fetching {
 public:
  void Add(const float* from, std::size_t floats, bool to_write = false) {
    if (streams_ < kMost) stream_[streams_++] = {reinterpret_cast<const char*>(from), floats * sizeof(float), 0, to_write};
  }
  // In so many steps.
  void Start(int steps) { steps_ = steps, step_ = 0; }
  void Step() {
    if (step_ == steps_) return;
    ++step_;
    for (int s = 0; s < streams_; ++s) {
      Stream& stream = stream_[s];
      const std::size_t end = stream.bytes * step_ / steps_;
      for (; stream.done < end; stream.done += kLine) {
        if (stream.to_write) {
          __builtin_prefetch(stream.from + stream.done, 1, 2);
        } else {
          __builtin_prefetch(stream.from + stream.done, 0, 2);
        }
      }
    }
  }

 private:
  static constexpr int kMost = 8;
  static constexpr std::size_t kLine = 64;
  struct Stream {
    const char* from;
    std::size_t bytes, done;
    bool to_write;
  };

  std::array<Stream, kMost> stream_;
  int streams_ = 0, steps_ = 0, step_ = 0;
};

// Stores a convolution's results and takes the sums of them and of their squares.
class Statistics {
 public:
  Statistics(float* to, double* sums, int channels, Fetching& fetching)
      : to_(to), sums_(sums, channels), fetching_(fetching) {}

  struct Part {
    float* to;
    int channel;
    ChannelSums<2>* sums;
    Vector sum = {}, squares = {};

    void Put(std::ptrdiff_t at, Vector value) {
      Store(to + at, value);
      sum += value;
      squares += value * value;
    }
    void End() {
      sums->Add(0, channel, sum);
      sums->Add(1, channel, squares);
    }
  };
  Part Begin(std::ptrdiff_t at, int channel) { return {to_ + at, channel, &sums_}; }
  void EndBlock() { sums_.Flush(); }
  void Step() { fetching_.Step(); }

 private:
  float* to_;
  ChannelSums<2> sums_;
  Fetching& fetching_;
};

// Stores the gradient with respect to what was cut at 0, where it was above, and takes the sums that the gradient of
// normalisation needs: of it, and of it times the result's difference from the mean (and the projection's).
struct Cut {
  float* to;
  const float* output;  // what was cut; null: that is made again, from `result`
  const float* added;   // a gradient that comes another way; null: none
  const float* result;
  const float* projected;  // null: none
  const Convolution* main;
  const Convolution* projection;
};

template <bool kStored, bool kProjected>
class Cutting {
 public:
  Cutting(const Cut& cut, double* sums, Fetching& fetching)
      : cut_(cut), sums_(sums, cut.main->out.channels), fetching_(fetching) {}

  struct Part {
    const Cut& cut;
    std::ptrdiff_t at;
    int channel;
    ChannelSums<kProjected ? 3 : 2>* sums;
    Normal normal;
    Vector projected_mean, sum = {}, products = {}, projected = {};

    void Put(std::ptrdiff_t offset, Vector value) {
      const std::ptrdiff_t here = at + offset;
      const Vector result = Load(cut.result + here);
      if (cut.added) value += Load(cut.added + here);
      const Vector output = kStored ? Load(cut.output + here) : normal(result);
      value = output > 0.0f ? value : Vector{};
      Store(cut.to + here, value);
      sum += value;
      products += value * (result - normal.mean);
      if constexpr (kProjected) projected += value * (Load(cut.projected + here) - projected_mean);
    }
    void End() {
      sums->Add(0, channel, sum);
      sums->Add(1, channel, products);
      if constexpr (kProjected) sums->Add(2, channel, projected);
    }
  };
  Part Begin(std::ptrdiff_t at, int channel) {
    Vector mean{};
    if constexpr (kProjected) mean = Load(cut_.projection->mean + channel);
    return {cut_, at, channel, &sums_, Normal(*cut_.main, channel), mean};
  }
  void EndBlock() { sums_.Flush(); }
  void Step() { fetching_.Step(); }

 private:
  const Cut& cut_;
  ChannelSums<kProjected ? 3 : 2> sums_;
  Fetching& fetching_;
};

// Calls run(finish) with what `cut` asks for.
template <class Run>
void WithCutting(const Cut& cut, double* sums, Fetching& fetching, const Run& run) {
  const auto call = [&](auto cutting) { run(cutting); };
  if (!cut.output) {
    call(Cutting<false, false>(cut, sums, fetching));
  } else if (cut.projected) {
    call(Cutting<true, true>(cut, sums, fetching));
  } else {
    call(Cutting<true, false>(cut, sums, fetching));
  }
}

// Tells `count` images' values, which lie one after another without a border, to `finish`.
template <class Finish>
void Tell(const float* values, Shape shape, int count, Finish& finish) {
  const std::ptrdiff_t row = static_cast<std::ptrdiff_t>(shape.width) * shape.channels;
  for (std::ptrdiff_t at = 0; at < row * shape.height * count; at += row) {
    for (int c = 0; c < shape.channels; c += kLanes) {
      auto part = finish.Begin(at + c, c);
      for (std::ptrdiff_t x = 0; x < row; x += shape.channels) part.Put(x, Load(values + at + c + x));
      part.End();
    }
    finish.EndBlock();
  }
}

// Calls run(std::integral_constant) with the channels of one of the stages.
template <class Run>
void WithChannels(int channels, const Run& run) {
  if (channels == 16) {
    run(std::integral_constant<int, 16>());
  } else if (channels == 32) {
    run(std::integral_constant<int, 32>());
  } else {
    run(std::integral_constant<int, 64>());
  }
}

// ---- A thread's share of the work.

class Worker {
 public:
  explicit Worker(Network& network)
      : network_(network),
        image_(Zeros(network.image.Size())),
        filters_(Zeros(TrainingWinograd<kLargest>::kFilters)),
        turned_(Zeros(9 * kLargest * kLargest)),
        scratch_(Zeros(TrainingWinograd<kLargest>::Scratch())) {
    std::size_t largest = 0;
    for (const Unit& unit : network.units) {
      const Shape shape = network.convolutions[unit.main].out;
      const int stage = Network::Stage(shape);
      if (group_[stage]) continue;
      for (group_[stage] = 1; group_[stage] < kGroup && 8 * group_[stage] * shape.Size() <= kGroupBytes;) {
        group_[stage] *= 2;
      }
      const std::size_t size = group_[stage] * shape.Size();
      for (auto& side : sides_) side[stage] = Zeros(size);
      largest = std::max(largest, size);
    }
    for (auto& plain : plain_) plain = Zeros(largest);
  }

 protected:
  static constexpr int kForward = 0, kBackward = 1;

  const Convolution& At(int number) const { return network_.convolutions[number]; }
  int Group(Shape shape) const { return group_[Network::Stage(shape)]; }
  float* Side(int side, Shape shape) { return sides_[side][Network::Stage(shape)].get(); }

  // Images, `count` of them from `first` on.
  struct Images {
    int first, count;
  };

  // Calls run(first image, count, the images that will probably come next) for the groups of a share, in the phase's order.
  template <class Run>
  void Groups(int phase, int share, int group, const Run& run) const {
    const int size = network_.ShareSize(), start = share * size, end = std::min(network_.count, start + size);
    const int groups = (end - start + group - 1) / group;
    for (int g = 0; g < groups; ++g) {
      const bool backwards = phase % 2;
      const int first = start + (backwards ? groups - 1 - g : g) * group, count = std::min(group, end - first);
      const int next = backwards ? std::max(first - group, 0) : first + count;
      run(first, count, Images{next, backwards ? first - next : std::min(group, network_.count - next)});
    }
  }

  // Makes filters of a layer's weights, once a phase.
  void Prepare(int phase, const Convolution& layer, bool backward) {
    if (phase == prepared_) return;
    prepared_ = phase;
    const float* weights = layer.kernel;
    if (backward) {
      Turn(weights, layer.size, layer.in.channels, layer.out.channels, turned_.get());
      weights = turned_.get();
    }
    if (!layer.filtered) return;
    WithChannels(layer.in.channels, [&](auto channels) {
      TrainingWinograd<channels>::Prepare(weights, filters_.get());
    });
  }

  // One image's pixels, normalised.
  const float* Image(int number) {
    const Shape& shape = network_.image;
    const float* from = network_.pixels + number * network_.Pixels();
    for (int y = 0; y < shape.height; ++y) {
      float* to = image_.get() + shape.At(y, 0);
      for (int x = 0; x < shape.width; ++x) {
        for (int c = 0; c < shape.channels; ++c, ++from, ++to) {
          *to = (*from - network_.image_mean[c]) * network_.image_inverse[c];
        }
      }
    }
    return image_.get();
  }

  // A part of an array, which the next group will need.
  static void Next(const float* array, Shape shape, Images next, Fetching& fetching, bool to_write = false) {
    const std::size_t size = Plain(shape).Size();
    if (next.count > 0) fetching.Add(array + next.first * size, next.count * size, to_write);
  }

  // Fills a buffer with a border: to each row, as row(image, y, place among images without a border, to).
  template <class Row>
  static void Fill(Shape shape, int first, int count, float* to, const Row& row) {
    const Shape plain = Plain(shape);
    for (int i = 0; i < count; ++i) {
      for (int y = 0; y < shape.height; ++y) {
        row(first + i, y, (first + i) * static_cast<std::ptrdiff_t>(plain.Size()) + plain.At(y, 0),
            to + i * shape.Size() + shape.At(y, 0));
      }
    }
  }

  // A row of a convolution's results, normalised and cut at 0.
  static void NormalRow(const Convolution& of, std::ptrdiff_t at, float* to) {
    const int channels = of.out.channels, row = of.out.width * channels;
    for (int c = 0; c < channels; c += kLanes) {
      const Normal normal(of, c);
      for (int x = c; x < row; x += channels) Store(to + x, Relu(normal(Load(of.result + at + x))));
    }
  }

  // A row of the gradient with respect to a convolution's results.
  static void GradientRow(const Convolution& of, const float* gradient, std::ptrdiff_t at, float* to) {
    const int channels = of.out.channels, row = of.out.width * channels;
    for (int c = 0; c < channels; c += kLanes) {
      const NormalGradient normal(of, c);
      for (int x = c; x < row; x += channels) {
        Store(to + x, normal(Load(gradient + at + x), Load(of.result + at + x)));
      }
    }
  }

  Network& network_;
  Buffer image_, filters_, turned_, scratch_;
  std::array<int, 3> group_ = {};
  std::array<std::array<Buffer, 3>, 2> sides_;  // a group's images with a border, of each stage, to be convolved
  std::array<Buffer, 2> plain_;                 // and without

 private:
  int prepared_ = -1;
};

// Phases: the stem, the two convolutions of every block, the mean over pixels.
class ForwardWorker : public Worker {
 public:
  // sums: [shares, 2 convolutions, 2 sums, kLargest]
  ForwardWorker(Network& network, double* sums, float* features) : Worker(network), sums_(sums), features_(features) {}

  static int Phases(const Network& network) { return 2 * static_cast<int>(network.blocks.size()) + 2; }

  void operator()(int phase, int share) {
    double* sums = sums_ + share * 4 * kLargest;
    std::fill_n(sums, 4 * kLargest, 0.0);
    if (phase == 0) return Stem(phase, share, sums);
    const std::size_t b = (phase - 1) / 2;
    if (b == network_.blocks.size()) return Features(phase, share);
    const Block& block = network_.blocks[b];
    if (phase % 2) {
      First(phase, block, network_.units[b], share, sums);
    } else {
      Second(phase, block, share, sums);
    }
  }

 private:
  void Stem(int phase, int share, double* sums) {
    const Convolution& stem = At(0);
    const Shape plain = Plain(stem.out);
    Fetching none;
    Groups(phase, share, 1, [&](int number, int, Images) {
      Convolve<3, 1>(Layer{stem.kernel, nullptr, false, false}, Image(number), stem.in, plain, nullptr, plain_[0].get());
      Statistics finish(stem.result + number * plain.Size(), sums, plain.channels, none);
      Tell(plain_[0].get(), plain, 1, finish);
    });
  }

  // A row of a unit's output, which is kept.
  void OutputRow(const Unit& unit, int number, int y, std::ptrdiff_t at, float* to) {
    const Convolution& main = At(unit.main);
    const int channels = main.out.channels, row = main.out.width * channels;
    float* keep = unit.output + at;
    const float* shortcut = unit.input ? unit.input + at : nullptr;
    if (unit.input && unit.in.channels != channels) {  // every other pixel, and channels of zeros about
      const Shape in = Plain(unit.in);
      const float* from = unit.input + number * in.Size() + in.At(2 * y, 0);
      std::fill_n(row_, row, 0.0f);
      for (int x = 0; x < main.out.width; ++x) {
        std::copy_n(from + 2 * x * in.channels, in.channels, row_ + x * channels + in.channels / 2);
      }
      shortcut = row_;
    }
    for (int c = 0; c < channels; c += kLanes) {
      const Normal normal(main, c);
      if (unit.projection >= 0) {
        const Convolution& projection = At(unit.projection);
        const Normal other(projection, c);
        for (int x = c; x < row; x += channels) {
          const Vector value = Relu(normal(Load(main.result + at + x)) + other(Load(projection.result + at + x)));
          Store(to + x, value);
          Store(keep + x, value);
        }
      } else {
        for (int x = c; x < row; x += channels) {
          Vector value = normal(Load(main.result + at + x));
          if (shortcut) value += Load(shortcut + x);
          value = Relu(value);
          Store(to + x, value);
          Store(keep + x, value);
        }
      }
    }
  }

  void First(int phase, const Block& block, const Unit& before, int share, double* sums) {
    const Convolution& layer = At(block.first);
    const Convolution& main = At(before.main);
    Groups(phase, share, Group(layer.in), [&](int first, int count, Images next) {
      float* copy = Side(0, layer.in);
      Fill(layer.in, first, count, copy, [&](int number, int y, std::ptrdiff_t at, float* to) {
        OutputRow(before, number, y, at, to);
      });
      Fetching fetching;
      Next(main.result, layer.in, next, fetching);
      Next(before.output, layer.in, next, fetching, true);
      if (before.projection >= 0) Next(At(before.projection).result, layer.in, next, fetching);
      if (before.input) Next(before.input, before.in, next, fetching);
      Convolved(phase, layer, copy, first, count, sums, fetching);
      if (block.projection >= 0) {
        Convolved(phase, At(block.projection), copy, first, count, sums + 2 * kLargest, fetching);
      }
    });
  }

  void Second(int phase, const Block& block, int share, double* sums) {
    const Convolution &before = At(block.first), &layer = At(block.second);
    Groups(phase, share, Group(layer.in), [&](int first, int count, Images next) {
      float* copy = Side(0, layer.in);
      Fill(layer.in, first, count, copy,
           [&](int, int, std::ptrdiff_t at, float* to) { NormalRow(before, at, to); });
      Fetching fetching;
      Next(before.result, layer.in, next, fetching);
      Convolved(phase, layer, copy, first, count, sums, fetching);
    });
  }

  void Convolved(int phase, const Convolution& layer, const float* copy, int first, int count, double* sums,
                 Fetching& fetching) {
    const Shape plain = Plain(layer.out);
    Statistics finish(layer.result + first * plain.Size(), sums, plain.channels, fetching);
    if (layer.filtered) {
      Prepare(phase, layer, false);
      return WithChannels(layer.in.channels, [&](auto channels) {
        fetching.Add(layer.result + first * plain.Size(), count * plain.Size(), true);
        fetching.Start(TrainingWinograd<channels>::Steps(layer.in, count, false));
        TrainingWinograd<channels>::Run(filters_.get(), copy, layer.in, count, finish, scratch_.get());
      });
    }
    const Layer direct{layer.kernel, nullptr, false, false};
    for (int i = 0; i < count; ++i) {
      const float* from = copy + i * layer.in.Size();
      float* to = plain_[0].get() + i * plain.Size();
      if (layer.size == 1) {
        Convolve<1, 2>(direct, from, layer.in, plain, nullptr, to);
      } else if (layer.stride == 2) {
        Convolve<3, 2>(direct, from, layer.in, plain, nullptr, to);
      } else {
        Convolve<3, 1>(direct, from, layer.in, plain, nullptr, to);
      }
    }
    Tell(plain_[0].get(), plain, count, finish);
  }

  void Features(int phase, int share) {
    const Shape shape = network_.Last();
    const float pixels = static_cast<float>(shape.height * shape.width);
    Groups(phase, share, 1, [&](int number, int, Images) {
      float sums[kLargest] = {};
      Fill(shape, number, 1, Side(0, shape), [&](int, int y, std::ptrdiff_t at, float* to) {
        OutputRow(network_.units.back(), number, y, at, to);
        for (int x = 0; x < shape.width * shape.channels; ++x) sums[x % kLargest] += to[x];
      });
      for (int c = 0; c < kLargest; ++c) features_[number * kLargest + c] = sums[c] / pixels;
    });
  }

  double* sums_;
  float* features_;
  float* row_ = plain_[1].get();
};

// Phases: the mean over pixels, the two convolutions of every block from the last to the first, the stem; and one that only
// gathers. With every phase but the first, the gradient with respect to the weights of the phase before is gathered.
class BackwardWorker : public Worker {
 public:
  // sums: [shares, 3 sums, kLargest]; to_weights: of every convolution; to_images may be null.
  BackwardWorker(Network& network, double* sums, const float* to_features, const std::vector<float*>& to_weights,
                 float* to_images)
      : Worker(network), sums_(sums), to_features_(to_features), to_weights_(to_weights), to_images_(to_images) {
    if (to_images) {
      const int channels = Padded(network.image.channels);
      padded_ = Zeros(9 * 16 * channels);
      image_gradient_ = Zeros(Shape{network.image.height, network.image.width, channels, 0}.Size());
      const Convolution& stem = network.convolutions[0];
      const Buffer turned = Zeros(9 * 16 * stem.in.channels);
      Turn(stem.kernel, 3, stem.in.channels, 16, turned.get());
      for (int i = 0; i < 9 * 16; ++i) {
        std::copy_n(turned.get() + i * stem.in.channels, stem.in.channels, padded_.get() + i * channels);
      }
    }
  }

  static constexpr int kGatherers = 8;

  static int Phases(const Network& network) { return 2 * static_cast<int>(network.blocks.size()) + 3; }
  // How many tasks; those after the shares gather.
  static std::vector<int> Tasks(const Network& network) {
    std::vector<int> tasks(Phases(network), network.Shares() + kGatherers);
    tasks[0] = tasks[1] = network.Shares();
    tasks.back() = kGatherers;
    return tasks;
  }

  void operator()(int phase, int task) {
    const int shares = phase + 1 == Phases(network_) ? 0 : network_.Shares();
    if (task >= shares) return Gather(phase - 1, task - shares);
    double* sums = sums_ + task * 3 * kLargest;
    std::fill_n(sums, 3 * kLargest, 0.0);
    if (phase == 0) return Features(phase, task, sums);
    float* own = network_.sums[phase % 2] + task * network_.largest;
    const int b = static_cast<int>(network_.blocks.size()) - 1 - (phase - 1) / 2;
    if (b < 0) return Stem(phase, task, own);
    const Block& block = network_.blocks[b];
    if (phase % 2) {
      Second(phase, block, task, own, sums);
    } else if (At(block.first).stride == 1) {
      First(phase, block, network_.units[b], task, own, sums);
    } else {
      Enter(phase, block, network_.units[b], task, own, sums);
    }
  }

 private:
  static int Padded(int channels) { return channels <= 16 ? 16 : (channels + 31) / 32 * 32; }

  float* GradientOf(Shape shape) const { return network_.gradients[Network::Stage(shape)]; }

  // The gradient with respect to a unit's output is to be cut there.
  Cut CutOf(const Unit& unit, int first, const float* added) const {
    const Convolution& main = At(unit.main);
    const std::ptrdiff_t at = first * static_cast<std::ptrdiff_t>(Plain(main.out).Size());
    const Convolution* projection = unit.projection >= 0 ? &At(unit.projection) : nullptr;
    return {GradientOf(main.out) + at, unit.output + at, added, main.result + at,
            projection ? projection->result + at : nullptr, &main, projection};
  }

  void Features(int phase, int share, double* sums) {
    const Shape plain = Plain(network_.Last());
    const float pixels = static_cast<float>(plain.height * plain.width);
    Fetching none;
    Groups(phase, share, 1, [&](int number, int, Images) {
      float* values = plain_[0].get();
      for (std::size_t i = 0; i < plain.Size(); ++i) {
        values[i] = to_features_[number * kLargest + i % kLargest] / pixels;
      }
      const Cut cut = CutOf(network_.units.back(), number, nullptr);
      WithCutting(cut, sums, none, [&](auto& finish) { Tell(values, plain, 1, finish); });
    });
  }

  void Second(int phase, const Block& block, int share, float* own, double* sums) {
    const Convolution &before = At(block.first), &layer = At(block.second);
    const float* gradient = GradientOf(layer.out);
    bool fresh = true;
    Groups(phase, share, Group(layer.in), [&](int first, int count, Images next) {
      Fill(layer.in, first, count, Side(0, layer.in),
           [&](int, int, std::ptrdiff_t at, float* to) { NormalRow(before, at, to); });
      Fill(layer.out, first, count, Side(1, layer.out),
           [&](int, int, std::ptrdiff_t at, float* to) { GradientRow(layer, gradient, at, to); });
      const std::ptrdiff_t at = first * static_cast<std::ptrdiff_t>(Plain(layer.in).Size());
      const Cut cut{network_.inner + at, nullptr, nullptr, before.result + at, nullptr, &before, nullptr};
      Fetching fetching;
      fetching.Add(cut.to, count * Plain(layer.in).Size(), true);
      for (const float* array : {gradient, static_cast<const float*>(layer.result), static_cast<const float*>(before.result)}) {
        Next(array, layer.out, next, fetching);
      }
      Both(phase, layer, count, own, fresh, cut, sums, fetching);
      fresh = false;
    });
  }

  void First(int phase, const Block& block, const Unit& before, int share, float* own, double* sums) {
    const Convolution& layer = At(block.first);
    bool fresh = true;
    Groups(phase, share, Group(layer.in), [&](int first, int count, Images next) {
      CopyOutput(before, layer.in, first, count);
      Fill(layer.out, first, count, Side(1, layer.out),
           [&](int, int, std::ptrdiff_t at, float* to) { GradientRow(layer, network_.inner, at, to); });
      const std::ptrdiff_t at = first * static_cast<std::ptrdiff_t>(Plain(layer.in).Size());
      const Cut cut = CutOf(before, first, GradientOf(layer.out) + at);
      Fetching fetching;
      const std::size_t size = count * Plain(layer.in).Size();
      fetching.Add(cut.to, size, true);
      fetching.Add(cut.result, size);
      if (cut.projected) fetching.Add(cut.projected, size);
      for (const float* array : {network_.inner, layer.result, before.output}) {
        Next(array, layer.out, next, fetching);
      }
      Both(phase, layer, count, own, fresh, cut, sums, fetching);
      fresh = false;
    });
  }

  void CopyOutput(const Unit& unit, Shape shape, int first, int count) {
    const int row = shape.width * shape.channels;
    Fill(shape, first, count, Side(0, shape),
         [&](int, int, std::ptrdiff_t at, float* to) { std::copy_n(unit.output + at, row, to); });
  }

  // Of a convolution that keeps the shape: the gradients of its weights and of its input, which is cut.
  void Both(int phase, const Convolution& layer, int count, float* own, bool fresh, const Cut& cut, double* sums,
            Fetching& fetching) {
    const float *from = Side(0, layer.in), *gradient = Side(1, layer.out);
    Prepare(phase, layer, true);
    WithCutting(cut, sums, fetching, [&](auto& finish) {
      if (layer.filtered) {
        return WithChannels(layer.in.channels, [&](auto channels) {
          fetching.Start(TrainingWinograd<channels>::Steps(layer.in, count, true));
          TrainingWinograd<channels>::Gradients(filters_.get(), from, gradient, layer.in, count, own, fresh, finish,
                                                scratch_.get());
        });
      }
      if (fresh) std::fill_n(own, layer.Sums(), 0.0f);
      const Shape plain = Plain(layer.in);
      for (int i = 0; i < count; ++i) {
        const float* back = gradient + i * layer.out.Size();
        AccumulateWeights<3, 1>(from + i * layer.in.Size(), layer.in, back, layer.out, own);
        Convolve<3, 1>(Layer{turned_.get(), nullptr, false, false}, back, layer.out, plain, nullptr,
                       plain_[0].get() + i * plain.Size());
      }
      Tell(plain_[0].get(), plain, count, finish);
    });
  }

  // From the middle of a stage's first block, and from its end by the shortcut, to the end of the stage before.
  void Enter(int phase, const Block& block, const Unit& before, int share, float* own, double* sums) {
    const Convolution& layer = At(block.first);
    const Shape in = layer.in, out = layer.out, plain = Plain(in);
    const float* gradient = GradientOf(out);
    float *result = plain_[0].get(), *added = plain_[1].get();
    Prepare(phase, layer, true);
    std::fill_n(own, network_.largest, 0.0f);
    Fetching none;
    Groups(phase, share, std::min(Group(in), Group(out)), [&](int first, int count, Images) {
      CopyOutput(before, in, first, count);
      const auto from = [&](int i) { return Side(0, in) + i * in.Size(); };
      const auto back = [&](int i) { return Side(1, out) + i * out.Size(); };
      Fill(out, first, count, Side(1, out),
           [&](int, int, std::ptrdiff_t at, float* to) { GradientRow(layer, network_.inner, at, to); });
      for (int i = 0; i < count; ++i) {
        AccumulateWeights<3, 2>(from(i), in, back(i), out, own);
        ConvolveAdjoint<3>(turned_.get(), back(i), out, plain, result + i * plain.Size());
      }
      std::fill_n(added, count * plain.Size(), 0.0f);
      if (block.projection >= 0) {
        const Convolution& projection = At(block.projection);
        float* turned = scratch_.get();
        Turn(projection.kernel, 1, in.channels, out.channels, turned);
        Fill(out, first, count, Side(1, out),
             [&](int, int, std::ptrdiff_t at, float* to) { GradientRow(projection, gradient, at, to); });
        for (int i = 0; i < count; ++i) {
          AccumulateWeights<1, 2>(from(i), in, back(i), out, own + layer.Sums());
          ConvolveAdjoint<1>(turned, back(i), out, plain, added + i * plain.Size());
        }
      } else {
        const Shape small = Plain(out);
        for (int i = 0; i < count; ++i) {
          for (int y = 0; y < out.height; ++y) {
            for (int x = 0; x < out.width; ++x) {
              std::copy_n(gradient + (first + i) * small.Size() + small.At(y, x) + in.channels / 2, in.channels,
                          added + i * plain.Size() + plain.At(2 * y, 2 * x));
            }
          }
        }
      }
      const Cut cut = CutOf(before, first, added);
      // What is added lies in this group's own buffer.
      WithCutting(cut, sums, none, [&](auto& finish) { Tell(result, plain, count, finish); });
    });
  }

  void Stem(int phase, int share, float* own) {
    const Convolution& stem = At(0);
    float* gradient = Side(1, stem.out);
    std::fill_n(own, stem.Sums(), 0.0f);
    Groups(phase, share, 1, [&](int number, int, Images) {
      Fill(stem.out, number, 1, gradient, [&](int, int, std::ptrdiff_t at, float* to) {
        GradientRow(stem, GradientOf(stem.out), at, to);
      });
      AccumulateWeights<3, 1>(Image(number), stem.in, gradient, stem.out, own);
      if (to_images_) ToImage(number, gradient);
    });
  }

  void ToImage(int number, const float* gradient) {
    const Shape& image = network_.image;
    const Shape wide{image.height, image.width, Padded(image.channels), 0};
    Convolve<3, 1>(Layer{padded_.get(), nullptr, false, false}, gradient, At(0).out, wide, nullptr,
                   image_gradient_.get());
    float* to = to_images_ + number * network_.Pixels();
    for (int pixel = 0; pixel < image.height * image.width; ++pixel) {
      const float* from = image_gradient_.get() + pixel * wide.channels;
      for (int c = 0; c < image.channels; ++c) *to++ = from[c] * network_.image_inverse[c];
    }
  }

  // A part of the weights' gradients that were accumulated in a phase.
  void Gather(int phase, int part) {
    const float* sums = network_.sums[phase % 2];
    const int b = static_cast<int>(network_.blocks.size()) - 1 - (phase - 1) / 2;
    if (b < 0) return GatherOf(0, sums, part);
    const Block& block = network_.blocks[b];
    if (phase % 2) return GatherOf(block.second, sums, part);
    GatherOf(block.first, sums, part);
    if (block.projection >= 0) GatherOf(block.projection, sums + At(block.first).Sums(), part);
  }

  void GatherOf(int number, const float* sums, int part) {
    const Convolution& layer = At(number);
    const int shares = network_.Shares();
    if (layer.filtered) {
      return WithChannels(layer.in.channels, [&](auto channels) {
        constexpr int kPart = channels * channels / kGatherers;
        TrainingWinograd<channels>::GatherWeights(sums, shares, network_.largest, part * kPart, (part + 1) * kPart,
                                                  to_weights_[number]);
      });
    }
    const std::size_t size = layer.Weights(), step = (size + kGatherers - 1) / kGatherers;
    for (std::size_t i = part * step; i < std::min(size, (part + 1) * step); ++i) {
      float sum = sums[i];
      for (int s = 1; s < shares; ++s) sum += sums[s * network_.largest + i];
      to_weights_[number][i] = sum;
    }
  }

  double* sums_;
  const float* to_features_;
  const std::vector<float*>& to_weights_;
  float* to_images_;
  Buffer padded_, image_gradient_;
};

// ---- What is done once a phase, with the sums of all shares in their order.

double SumOf(const double* sums, int shares, int stride, int at) {
  double sum = 0;
  for (int share = 0; share < shares; ++share) sum += sums[share * stride + at];
  return sum;
}

void Normalise(const Network& network, const Convolution& of, const double* sums, int stride) {
  const double pixels = static_cast<double>(network.count) * of.out.height * of.out.width;
  for (int c = 0; c < of.out.channels; ++c) {
    const double mean = SumOf(sums, network.Shares(), stride, c) / pixels;
    const double square = SumOf(sums, network.Shares(), stride, kLargest + c) / pixels;
    const double variance = std::max(square - mean * mean, 0.0);
    const double inverse = 1 / std::sqrt(variance + kEpsilon);
    of.mean[c] = static_cast<float>(mean);
    of.inverse[c] = static_cast<float>(inverse);
    of.factor[c] = static_cast<float>(of.scale[c] * inverse);
    of.slope[c] = static_cast<float>(variance);  // until the gradient's takes its place
  }
}

// `products`: which of the sums is that of the gradient times the result's difference from the mean.
void NormaliseGradient(const Network& network, const Convolution& of, const double* sums, int products, float* to_scale,
                       float* to_bias) {
  const double pixels = static_cast<double>(network.count) * of.out.height * of.out.width;
  constexpr int kStride = 3 * kLargest;
  for (int c = 0; c < of.out.channels; ++c) {
    const double sum = SumOf(sums, network.Shares(), kStride, c);
    const double inverse = of.inverse[c], product = SumOf(sums, network.Shares(), kStride, products * kLargest + c);
    of.slope[c] = static_cast<float>(-of.scale[c] * inverse * inverse * inverse * product / pixels);
    of.offset[c] = static_cast<float>(-of.scale[c] * inverse * sum / pixels);
    to_scale[c] = static_cast<float>(product * inverse);
    to_bias[c] = static_cast<float>(sum);
  }
}

void RunForward(ffi::ThreadPool& pool, Network& network, float* features) {
  constexpr int kStride = 4 * kLargest;
  std::vector<double> sums(static_cast<std::size_t>(kShares) * kStride);
  const std::vector<int> tasks(ForwardWorker::Phases(network), network.Shares());
  ForEachPhase(
      pool, tasks, [&] { return ForwardWorker(network, sums.data(), features); },
      [&](int phase) {
        if (phase == 0) return Normalise(network, network.convolutions[0], sums.data(), kStride);
        const std::size_t b = (phase - 1) / 2;
        if (b == network.blocks.size()) return;
        const Block& block = network.blocks[b];
        const int number = phase % 2 ? block.first : block.second;
        Normalise(network, network.convolutions[number], sums.data(), kStride);
        if (phase % 2 && block.projection >= 0) {
          Normalise(network, network.convolutions[block.projection], sums.data() + 2 * kLargest, kStride);
        }
      });
}

struct Gradients {
  std::vector<float*> weights, scales, biases;
  float* images = nullptr;
};

void RunBackward(ffi::ThreadPool& pool, Network& network, const float* to_features, const Gradients& gradients) {
  std::vector<double> sums(static_cast<std::size_t>(kShares) * 3 * kLargest);
  const auto normalise = [&](int number, int products) {
    NormaliseGradient(network, network.convolutions[number], sums.data(), products, gradients.scales[number],
                      gradients.biases[number]);
  };
  const int blocks = static_cast<int>(network.blocks.size());
  ForEachPhase(
      pool, BackwardWorker::Tasks(network),
      [&] { return BackwardWorker(network, sums.data(), to_features, gradients.weights, gradients.images); },
      [&](int phase) {
        const int b = blocks - 1 - (phase - 1) / 2;
        if (phase > 2 * blocks) return;
        if (phase % 2) return normalise(network.blocks[b].first, 1);
        const Unit& unit = phase == 0 ? network.units.back() : network.units[b];
        normalise(unit.main, 1);
        if (unit.projection >= 0) normalise(unit.projection, 2);
      });
}

// ---- The calls.

KeptPages& Memory() {
  static KeptPages* memory = new KeptPages;  // for ever: a call may run while the process ends
  return *memory;
}

constexpr int kOfConvolution = 5;  // arguments: weights, scale, bias, running mean and variance

ffi::Error Refusal() { return ffi::Error::InvalidArgument("Expected the arrays that resnet_training_cpu.py passes."); }
ffi::Error TooLittle() { return ffi::Error::Internal("Expected as much memory as was counted."); }

// The network of the arrays: images, their channels' mean and 1 / std, and those of every convolution.
std::optional<Network> Read(const Array& images, const Array& mean, const Array& inverse,
                            const ffi::RemainingArgs& arrays, std::int64_t blocks, bool projection) {
  const auto size = images.dimensions();
  if (size.size() != 4 || size[0] < 1 || blocks < 1) return std::nullopt;
  const Shape image{static_cast<int>(size[1]), static_cast<int>(size[2]), static_cast<int>(size[3])};
  Network network(static_cast<int>(size[0]), image, static_cast<int>(blocks), projection);
  const std::size_t channels = image.channels;
  if (mean.element_count() != channels || inverse.element_count() != channels) return std::nullopt;
  if (arrays.size() < kOfConvolution * network.convolutions.size()) return std::nullopt;
  network.pixels = images.typed_data();
  network.image_mean = mean.typed_data();
  network.image_inverse = inverse.typed_data();
  for (std::size_t i = 0; i < network.convolutions.size(); ++i) {
    Convolution& one = network.convolutions[i];
    for (int part = 0; part < kOfConvolution; ++part) {
      const auto array = arrays.get<Array>(kOfConvolution * i + part);
      const std::size_t expected = part ? one.out.channels : one.Weights();
      if (array.has_error() || array->element_count() != expected) return std::nullopt;
      if (part < 3) (part == 0 ? one.kernel : part == 1 ? one.scale : one.bias) = array->typed_data();
    }
  }
  network.Place(nullptr);
  return network;
}

ffi::Error Forward(ffi::ThreadPool pool, Array images, Array mean, Array inverse, ffi::RemainingArgs arrays,
                   Result features, ffi::ResultBuffer<ffi::U32> name, ffi::RemainingRets statistics,
                   std::int64_t blocks, bool projection, bool keep) {
  auto network = Read(images, mean, inverse, arrays, blocks, projection);
  if (!network || features->element_count() != static_cast<std::size_t>(network->count) * kLargest) return Refusal();
  Pages pages = Memory().Take(network->floats);
  network->Place(pages.get());
  if (network->floats > pages.floats()) return TooLittle();
  RunForward(pool, *network, features->typed_data());
  for (std::size_t i = 0; i < network->convolutions.size(); ++i) {
    const Convolution& one = network->convolutions[i];
    const auto old_mean = arrays.get<Array>(kOfConvolution * i + 3), old_variance = arrays.get<Array>(kOfConvolution * i + 4);
    auto new_mean = statistics.get<Array>(2 * i), new_variance = statistics.get<Array>(2 * i + 1);
    if (new_mean.has_error() || new_variance.has_error()) return Refusal();
    for (int c = 0; c < one.out.channels; ++c) {
      const auto blend = [](float old, float now) { return kMomentum * old + (1 - kMomentum) * now; };
      (*new_mean)->typed_data()[c] = blend(old_mean->typed_data()[c], one.mean[c]);
      (*new_variance)->typed_data()[c] = blend(old_variance->typed_data()[c], one.slope[c]);
    }
  }
  std::uint64_t kept = 0;
  if (keep) {
    kept = Memory().Keep(std::move(pages));
  } else {
    Memory().Release(std::move(pages));
  }
  std::memcpy(name->typed_data(), &kept, sizeof kept);
  return ffi::Error::Success();
}

ffi::Error Backward(ffi::ThreadPool pool, Array images, Array mean, Array inverse, Array to_features,
                    ffi::Buffer<ffi::U32> name, ffi::RemainingArgs arrays, ffi::RemainingRets results,
                    std::int64_t blocks, bool projection, bool to_images) {
  auto network = Read(images, mean, inverse, arrays, blocks, projection);
  if (!network || to_features.element_count() != static_cast<std::size_t>(network->count) * kLargest) return Refusal();
  Gradients gradients;
  const std::size_t convolutions = network->convolutions.size();
  for (std::size_t i = 0; i < 3 * convolutions + (to_images ? 1 : 0); ++i) {
    auto array = results.get<Array>(i);
    if (array.has_error()) return Refusal();
    float* data = (*array)->typed_data();
    if (i == 3 * convolutions) {
      gradients.images = data;
    } else {
      (i % 3 == 0 ? gradients.weights : i % 3 == 1 ? gradients.scales : gradients.biases).push_back(data);
    }
  }
  std::uint64_t kept;
  std::memcpy(&kept, name.typed_data(), sizeof kept);
  std::list<Pages> found;
  const bool kept_still = Memory().Find(kept, &found);
  if (!kept_still) found.push_back(Memory().Take(network->floats));
  network->Place(found.front().get());
  if (network->floats > found.front().floats()) return TooLittle();
  if (!kept_still) {
    // Too many other calls came between, or this is not the first for that name: the same is computed again.
    std::vector<float> features(static_cast<std::size_t>(network->count) * kLargest);
    RunForward(pool, *network, features.data());
  }
  RunBackward(pool, *network, to_features.typed_data(), gradients);
  Memory().Release(std::move(found.front()));
  return ffi::Error::Success();
}

}  // namespace
}  // namespace idrc

XLA_FFI_DEFINE_HANDLER_SYMBOL(IdrcTrainingForward, idrc::Forward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .RemainingArgs()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::U32>>()
                                  .RemainingRets()
                                  .Attr<std::int64_t>("blocks")
                                  .Attr<bool>("projection")
                                  .Attr<bool>("keep"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(IdrcTrainingBackward, idrc::Backward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::U32>>()
                                  .RemainingArgs()
                                  .RemainingRets()
                                  .Attr<std::int64_t>("blocks")
                                  .Attr<bool>("projection")
                                  .Attr<bool>("to_images"));
