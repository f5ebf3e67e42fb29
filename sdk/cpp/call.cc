// Child::Call: observes, sends, waits.
#include <algorithm>
#include <chrono>
#include <optional>
#include <string>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "fmt/format.h"
#include "sdk/cpp/client.h"
#include "sdk/cpp/reply.h"
#include "sdk/cpp/rpc_error.h"

namespace deka {
namespace {

using std::chrono::milliseconds;

absl::Status NoReply(milliseconds timeout, std::string_view sent) {
  return ClientError(absl::StatusCode::kDeadlineExceeded, "NO_REPLY_DEADLINE",
                     fmt::format("no reply came within {} ms; {}", timeout.count(), sent));
}

}  // namespace

v1::ContentFilter Where(std::string pointer, std::optional<std::string> equals) {
  v1::ContentFilter where;
  where.set_pointer(std::move(pointer));
  if (equals.has_value()) {
    where.set_equals(*std::move(equals));
  }
  return where;
}

absl::StatusOr<v1::Event> Child::Call(std::string_view json, CallOptions options) const {
  const bool bounded = options.timeout.count() > 0;
  const auto deadline =
      bounded ? Reply::Clock::now() + options.timeout : Reply::Clock::time_point::max();

  v1::ObserveRequest request;
  request.mutable_filter()->add_children(name());
  v1::Observation& observed = *request.mutable_observation();
  observed.add_kinds(v1::EVENT_KIND_MESSAGE);
  observed.add_kinds(v1::EVENT_KIND_DISCONNECTED);
  observed.set_direction(v1::DIRECTION_FROM_CHILD);
  observed.mutable_where()->Assign(options.where.begin(), options.where.end());
  Reply reply;
  const absl::StatusOr<Observation> observation =
      Client(connection_).Observe(std::move(request), reply.Observer(deadline), deadline);
  if (absl::IsDeadlineExceeded(observation.status())) {
    return ClientError(absl::StatusCode::kDeadlineExceeded, "NOT_SENT_DEADLINE",
                       fmt::format("the agent did not answer within {} ms; nothing was sent",
                                   options.timeout.count()));
  }
  if (!observation.ok()) {
    return observation.status();
  }
  // Before the observation goes, which waits for its callbacks.
  const absl::Cleanup abandon = [&reply] { reply.Abandon(); };

  SendOptions send;
  send.request_id = std::move(options.request_id);
  if (bounded) {
    send.timeout =
        std::max(std::chrono::ceil<milliseconds>(deadline - Reply::Clock::now()), milliseconds(1));
  }
  const absl::StatusOr<v1::SendMessageResponse> sent = Send(json, std::move(send));
  if (!sent.ok()) {
    const bool late = Reply::Clock::now() >= deadline;
    return late && ErrorReason(sent.status()) == "OUTCOME_UNKNOWN"
               ? NoReply(options.timeout, "the child may have the message or not")
               : sent.status();
  }
  reply.Sent(sent->sequence());
  return reply.Await(deadline).value_or(
      NoReply(options.timeout, "the message is in the child's socket"));
}

}  // namespace deka
