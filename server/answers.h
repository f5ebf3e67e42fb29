// The answers to a stream of numbered requests: told in the order of their numbers, whatever the
// order they come in.
//
//   Add -> 1, 2, 3...    Set(2, OK) Set(1, OK) Set(3, error) -> Take: through 2; 3 failed
//
// Success is told once for all numbers up to the newest that is reached without a gap. Code without
// IO. Thread: one at a time.
#ifndef SERVER_ANSWERS_H_
#define SERVER_ANSWERS_H_

#include <cstddef>
#include <cstdint>
#include <deque>
#include <optional>

#include "absl/status/status.h"

namespace deka::server {

class Answers {
 public:
  struct Answer {
    int64_t number = 0;
    absl::Status status;  // OK: all up to `number` are answered; else this one failed
  };

  // The next request's number, from 1 on.
  int64_t Add() {
    waiting_.emplace_back();
    return first_ + static_cast<int64_t>(waiting_.size()) - 1;
  }

  // Once for each number.
  void Set(int64_t number, absl::Status status) {
    waiting_[static_cast<size_t>(number - first_)] = std::move(status);
  }

  // Whether Take() has something.
  bool HasNext() const { return !waiting_.empty() && waiting_.front().has_value(); }

  Answer Take() {
    Answer answer{first_, *std::move(waiting_.front())};
    Pop();
    while (answer.status.ok() && HasNext() && waiting_.front()->ok()) {
      answer.number = first_;
      Pop();
    }
    return answer;
  }

  // Everything that was added has been answered and taken.
  bool empty() const { return waiting_.empty(); }
  size_t size() const { return waiting_.size(); }

  // The number that Add() gives next.
  int64_t next_number() const { return first_ + static_cast<int64_t>(waiting_.size()); }

 private:
  void Pop() {
    waiting_.pop_front();
    ++first_;
  }

  int64_t first_ = 1;  // of waiting_
  std::deque<std::optional<absl::Status>> waiting_;
};

}  // namespace deka::server

#endif  // SERVER_ANSWERS_H_
