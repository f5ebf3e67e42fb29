// A caller's `done`, called exactly once: by who has the answer, else by the destructor.
#ifndef AGENT_ANSWER_H_
#define AGENT_ANSWER_H_

#include <utility>

#include "absl/status/statusor.h"
#include "agent/agent.h"
#include "ipc/error.h"

namespace deka::agent {

inline absl::Status StoppingError() {
  return ipc::MakeError(ipc::Reason::kAgentStopping,
                        "The agent is stopping. Connect again when it has been restarted.");
}

template <typename T>
class Answer {
 public:
  Answer() = default;
  explicit Answer(Done<T> done) : done_(std::move(done)) {}
  Answer(Answer&& other) noexcept : done_(std::exchange(other.done_, nullptr)) {}
  Answer& operator=(Answer&& other) noexcept {
    std::swap(done_, other.done_);
    return *this;
  }
  ~Answer() {
    if (done_) (*this)(StoppingError());
  }

  void operator()(absl::StatusOr<T> result) {
    if (done_) std::exchange(done_, nullptr)(std::move(result));
  }

 private:
  Done<T> done_;
};

}  // namespace deka::agent

#endif  // AGENT_ANSWER_H_
