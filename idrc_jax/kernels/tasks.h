// Dealing tasks to the calling thread and those of XLA's pool.

#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>

#include "xla/ffi/api/ffi.h"

namespace idrc {

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

}  // namespace idrc
