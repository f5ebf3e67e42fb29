// One agent, reached again whenever it went away.
//
// gRPC connects by itself and tries again after 100 ms at most; this class waits for it, says why
// there is no agent, and repeats calls whose answer was lost.
//
// Thread: any.
#ifndef SDK_CPP_CONNECTION_H_
#define SDK_CPP_CONNECTION_H_

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "deka/bridge/v1/bridge_service.grpc.pb.h"
#include "grpcpp/channel.h"
#include "grpcpp/client_context.h"
#include "sdk/cpp/check_utf8.h"
#include "sdk/cpp/client.h"
#include "sdk/cpp/rpc_error.h"

namespace deka {

class Connection {
 public:
  // Waits for an agent that is away, at most reconnect_ms_max for one outage.
  class Reconnection;

  using Clock = std::chrono::steady_clock;
  using Stub = v1::BridgeService::Stub;

  // Larger than any message of the API, whose payloads end at 64 MiB.
  static constexpr int kResponseBytesMax = (64 << 20) + (64 << 10);

  static absl::StatusOr<std::shared_ptr<Connection>> Open(Client::Options options);

  const std::string& target() const { return options_.target; }
  const std::string& client() const { return options_.name; }
  Stub& stub() { return *stub_; }

  // What to do when the connection ended before the answer came.
  enum class Lost {
    kRead,    // nothing was changed: call again
    kRepeat,  // call again, the agent knows a repeat when it sees one
    kOnce,    // OUTCOME_UNKNOWN
  };
  template <typename Request, typename Response>
  using Method = grpc::Status (Stub::*)(grpc::ClientContext*, const Request&, Response*);

  // Calls a unary method. OUTCOME_UNKNOWN, too, if there is no answer within `timeout` (0: none);
  // NOT_SENT_DEADLINE if the agent was away for all of that time.
  template <typename Request, typename Response>
  absl::StatusOr<Response> Call(Method<Request, Response> method, Request request, Lost lost,
                                std::chrono::milliseconds timeout = {});

 private:
  explicit Connection(Client::Options options);

  // AGENT_UNREACHABLE if nobody serves the socket when appear_ms_max is over.
  absl::Status AwaitFirst();

  const Client::Options options_;
  const std::shared_ptr<grpc::Channel> channel_;
  const std::unique_ptr<Stub> stub_;
};

class Connection::Reconnection {
 public:
  // Once `needless` answers true, every wait ends within 100 ms.
  explicit Reconnection(
      Connection& connection, std::function<bool()> needless = [] { return false; });

  // Waits until the connection stands: OK. AGENT_UNREACHABLE if the outage has lasted too long,
  // CANCELLED if the wait became needless.
  absl::Status Wait();

  // The same after a call that failed with IsConnectionLost(), so that calls begin 100 ms apart.
  // Answers the failure itself if the connection stands, but calls are reset time after time.
  absl::Status WaitAfter(const absl::Status& failure);

  // The outage is over: an answer came.
  void Succeeded() {
    deadline_ = Clock::time_point::max();
    resets_ = 0;
  }

 private:
  Connection& connection_;
  const std::function<bool()> needless_;
  Clock::time_point deadline_ = Clock::time_point::max();  // of this outage
  Clock::time_point call_ = Clock::time_point::min();      // when the latest was let go
  Clock::time_point next_ = Clock::time_point::min();      // not before
  int resets_ = 0;                                         // in a row
};

template <typename Request, typename Response>
absl::StatusOr<Response> Connection::Call(Method<Request, Response> method, Request request,
                                          Lost lost, std::chrono::milliseconds timeout) {
  if (absl::Status status = CheckUtf8(request); !status.ok()) {
    return status;
  }
  const Clock::time_point deadline =
      timeout.count() > 0 ? Clock::now() + timeout : Clock::time_point::max();
  Reconnection reconnection(*this, [deadline] { return Clock::now() >= deadline; });
  absl::Status status = reconnection.Wait();
  if (absl::IsCancelled(status)) {
    return ClientError(absl::StatusCode::kDeadlineExceeded, "NOT_SENT_DEADLINE",
                       "the agent is away, and the time to wait for it is over");
  }
  while (status.ok()) {
    grpc::ClientContext context;
    if (timeout.count() > 0) {
      // The clocks in this order: never earlier than `deadline`.
      const Clock::duration left = deadline - Clock::now();
      context.set_deadline(std::chrono::system_clock::now() + left);
    }
    Response response;
    status = FromRpc(((*stub_).*method)(&context, request, &response));
    if (status.ok()) {
      return response;
    }
    const bool expired =
        timeout.count() > 0 && status.code() == absl::StatusCode::kDeadlineExceeded;
    if (!ErrorReason(status).empty() || (!expired && !IsConnectionLost(status))) {
      if constexpr (requires { request.repeat(); }) {
        // An agent that has taken over does not know what was done before.
        if (request.repeat() && ErrorReason(status) == "CHILD_NOT_FOUND") {
          return OutcomeUnknown(status);
        }
      }
      return status;  // the agent's answer
    }
    if (!expired && lost != Lost::kOnce) {
      status = reconnection.WaitAfter(status);
      if constexpr (requires { request.set_repeat(true); }) {
        request.set_repeat(true);
      }
    }
    if (!status.ok() && lost != Lost::kRead) {
      return OutcomeUnknown(status);
    }
  }
  return status;
}

}  // namespace deka

#endif  // SDK_CPP_CONNECTION_H_
