// Dealing tasks to the calling thread and those of XLA's pool.

#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace idrc {

constexpr int kSpins = 1000;  // looks at what another thread will soon change, before sleep: some 20 microseconds

inline void Pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#endif
}

// Does task 0 .. tasks - 1 and returns when all are done, whoever did them. `make` gives a thread its worker, which is
// called with the number of a task.
template <class Make>
void ForEachTask(xla::ffi::ThreadPool& pool, int tasks, const Make& make) noexcept {
  struct Shared {
    std::atomic<int> next{0};
    std::mutex mutex;
    std::condition_variable finished;
    int done = 0;
  };
  auto shared = std::make_shared<Shared>();
  // A helper that comes after the last task was taken touches nothing but `shared`.
  auto help = [shared, tasks, &make] {
    std::optional<decltype(make())> worker;
    for (int task; (task = shared->next++) < tasks;) {
      if (!worker) worker.emplace(make());
      (*worker)(task);
      std::lock_guard<std::mutex> lock(shared->mutex);
      if (++shared->done == tasks) shared->finished.notify_one();
    }
  };
  const int helpers = std::min(static_cast<int>(pool.num_threads()), tasks) - 1;
  for (int i = 0; i < helpers; ++i) pool.Schedule(decltype(help)(help));
  help();
  std::unique_lock<std::mutex> lock(shared->mutex);
  shared->finished.wait(lock, [&] { return shared->done == tasks; });
}

// Does phases of tasks, counts[p] >= 1 of them in phase p, each phase when the one before is done and `finish` has been
// called with its number. `make` gives a thread its worker, which is called with a phase and the number of a task.
template <class Make, class Finish>
void ForEachPhase(xla::ffi::ThreadPool& pool, std::vector<int> counts, const Make& make,
                  const Finish& finish) noexcept {
  struct Shared {
    std::vector<int> counts;
    std::atomic<std::uint64_t> next{0};  // the phase, in the upper half, and its next task
    std::atomic<int> done{0};
    std::mutex mutex;
    std::condition_variable opened;
  };
  auto shared = std::make_shared<Shared>();
  const int most = *std::max_element(counts.begin(), counts.end());
  shared->counts = std::move(counts);
  // Whoever does the last task of a phase opens the next one. A helper that comes late joins the phase that is open, or
  // touches nothing but `shared`.
  auto help = [shared, &make, &finish] {
    std::optional<decltype(make())> worker;
    for (;;) {
      const std::uint64_t ticket = shared->next++;
      const auto phase = static_cast<std::uint32_t>(ticket >> 32);
      const auto task = static_cast<std::uint32_t>(ticket);
      if (phase >= shared->counts.size()) return;
      if (task < static_cast<std::uint32_t>(shared->counts[phase])) {
        if (!worker) worker.emplace(make());
        (*worker)(static_cast<int>(phase), static_cast<int>(task));
        if (++shared->done < shared->counts[phase]) continue;
        finish(static_cast<int>(phase));
        shared->done = 0;
        std::lock_guard<std::mutex> lock(shared->mutex);
        shared->next = (std::uint64_t{phase} + 1) << 32;
        shared->opened.notify_all();
        continue;
      }
      const auto is_open = [&] { return shared->next >> 32 != phase; };
      for (int spin = 0; spin < kSpins && !is_open(); ++spin) Pause();
      if (is_open()) continue;
      std::unique_lock<std::mutex> lock(shared->mutex);
      shared->opened.wait(lock, is_open);
    }
  };
  const int helpers = std::min(static_cast<int>(pool.num_threads()), most) - 1;
  for (int i = 0; i < helpers; ++i) pool.Schedule(decltype(help)(help));
  help();
}

}  // namespace idrc
