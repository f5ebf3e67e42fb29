#include "sdk/cpp/reply.h"

#include <string>
#include <utility>

#include "fmt/format.h"
#include "sdk/cpp/rpc_error.h"

namespace deka {
namespace {

absl::Status ChannelClosed(const v1::Disconnected& disconnected) {
  std::string how = "the child has closed its channel, or has ended";
  switch (disconnected.by()) {
    case v1::Disconnected::BY_CALLER:
      how = fmt::format("{} has disconnected the child", disconnected.sender().client());
      break;
    case v1::Disconnected::BY_AGENT:
      how = "the agent is stopping";
      break;
    case v1::Disconnected::BY_FAILURE:
      how = "the child's channel has failed: " + disconnected.message();
      break;
    default:
      break;
  }
  return ClientError(
      absl::StatusCode::kFailedPrecondition, "NO_REPLY_CHANNEL_CLOSED",
      fmt::format("the message is in the child's socket, but no reply came: {}", how));
}

// The message was sent; whether there was a reply cannot be told.
absl::Status MayHaveReplied(const absl::Status& cause) {
  return ClientError(
      absl::StatusCode::kUnknown, "OUTCOME_UNKNOWN",
      fmt::format("the message is in the child's socket, but a reply may have been missed, look at "
                  "the events before repeating it: {}",
                  std::string(cause.message())));
}

}  // namespace

deka::Observer Reply::Observer(Clock::time_point deadline) {
  deka::Observer observer;
  observer.on_event = [this, deadline](const v1::Event& event) {
    ipc::MutexLock lock(mutex_);
    if (!IsBehind(event.sequence(), deadline)) {
      return;
    }
    if (event.has_from_child() && !event.from_child().internal()) {
      Set(event);
    } else if (event.has_disconnected()) {
      Set(ChannelClosed(event.disconnected()));
    }
  };
  observer.on_gap = [this, deadline](const v1::Gap& gap) {
    ipc::MutexLock lock(mutex_);
    if (IsBehind(gap.to_sequence(), deadline) || (gap.inexact() && sent_.has_value())) {
      Set(MayHaveReplied(absl::DataLossError("events of the child are no longer in the log")));
    }
  };
  observer.on_end = [this](const absl::Status& status, const v1::Fin&) {
    ipc::MutexLock lock(mutex_);
    Set(MayHaveReplied(status.ok() ? absl::UnavailableError("the agent has ended the observation")
                                   : status));
  };
  return observer;
}

void Reply::Sent(int64_t sequence) {
  ipc::MutexLock lock(mutex_);
  sent_ = sequence;
  changed_.NotifyAll();
}

void Reply::Abandon() {
  ipc::MutexLock lock(mutex_);
  abandoned_ = true;
  changed_.NotifyAll();
}

std::optional<absl::StatusOr<v1::Event>> Reply::Await(Clock::time_point deadline) {
  ipc::MutexLock lock(mutex_);
  while (!result_.has_value() && changed_.WaitUntil(mutex_, deadline)) {
  }
  return result_;
}

bool Reply::IsBehind(int64_t sequence, Clock::time_point deadline) {
  while (!sent_.has_value() && !abandoned_ && changed_.WaitUntil(mutex_, deadline)) {
  }
  return sent_.has_value() && sequence > *sent_;
}

void Reply::Set(absl::StatusOr<v1::Event> result) {
  if (!result_.has_value()) {
    result_ = std::move(result);
    changed_.NotifyAll();
  }
}

}  // namespace deka
