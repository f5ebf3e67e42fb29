// What a client's callbacks tell, for a test to wait for.
#ifndef SDK_CPP_TESTING_H_
#define SDK_CPP_TESTING_H_

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "ipc/mutex.h"

namespace deka {

// No wait of a test is longer.
inline constexpr std::chrono::seconds kDeadline{30};

// Words. Thread: any.
class Record {
 public:
  void Add(std::string word) {
    ipc::MutexLock lock(mutex_);
    words_.push_back(std::move(word));
    changed_.NotifyAll();
  }

  std::vector<std::string> words() const {
    ipc::MutexLock lock(mutex_);
    return words_;
  }

  // Each waits, and gives all words, also where the deadline has passed: until there are so many,
  std::vector<std::string> Await(size_t count) const {
    return AwaitUntil([count](const auto& words) { return words.size() >= count; });
  }
  // until `word` is among them,
  std::vector<std::string> AwaitWord(const std::string& word) const {
    return AwaitUntil([&word](const auto& words) {
      return std::find(words.begin(), words.end(), word) != words.end();
    });
  }
  // until `word` is the last one.
  std::vector<std::string> AwaitLast(const std::string& word) const {
    return AwaitUntil(
        [&word](const auto& words) { return !words.empty() && words.back() == word; });
  }

 private:
  template <typename Condition>
  std::vector<std::string> AwaitUntil(const Condition& condition) const {
    const auto deadline = std::chrono::steady_clock::now() + kDeadline;
    ipc::MutexLock lock(mutex_);
    while (!condition(words_) && changed_.WaitUntil(mutex_, deadline)) {
    }
    return words_;
  }

  mutable ipc::Mutex mutex_;
  mutable ipc::CondVar changed_;
  std::vector<std::string> words_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace deka

#endif  // SDK_CPP_TESTING_H_
