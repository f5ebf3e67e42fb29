#include "server/bridge_service.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <map>
#include <optional>
#include <utility>

#include "agent/names.h"
#include "deka/bridge/v1/bridge_service.pb.h"
#include "ipc/error.h"
#include "server/answers.h"
#include "server/feed.h"
#include "server/status.h"

namespace deka::server {

namespace v1 = ::deka::bridge::v1;
using ipc::MakeError;
using ipc::Reason;

namespace {

// When to answer a caller that waits until its deadline: early enough that it hears the answer
// instead of giving up without one. gRPC rounds what it says of a deadline up by one in a hundred.
CallClock::time_point AnswerBy(const Call& call) {
  using std::chrono::milliseconds;
  if (call.deadline() == Call::kNever) return Call::kNever;
  const auto left = call.deadline() - CallClock::now();
  return call.deadline() - std::clamp<CallClock::duration>(left / 20, {}, milliseconds(500));
}

// The same error, with the number of the request that failed.
absl::Status WithNumber(const absl::Status& status, int64_t number) {
  const std::optional<Reason> reason = ipc::ReasonOf(status);
  if (!reason) return status;
  ipc::ErrorMetadata metadata = ipc::MetadataOf(status);
  metadata.emplace_back("number", std::to_string(number));
  return MakeError(*reason, {status.message().data(), status.message().size()}, metadata);
}

// A limit as the API has it; one that is too large for that is the largest.
template <typename Limit>
int32_t ToField(Limit limit) {
  constexpr int32_t kMax = std::numeric_limits<int32_t>::max();
  return std::cmp_less(limit, kMax) ? static_cast<int32_t>(limit) : kMax;
}

template <typename Message>
std::string ClientOf(const Message& request) {
  if constexpr (requires { request.client(); }) return request.client();
  return "";
}

// Ends a call with what the agent has answered. To be awaited.
template <typename Response>
auto Answer(Call& call, const absl::StatusOr<Response>& reply) {
  if (!reply.ok()) return call.Finish(reply.status());
  return call.Answer(Serialize(*reply));
}

}  // namespace

BridgeService::BridgeService(agent::Agent& agent, Options options)
    : agent_(agent), options_(std::move(options)) {
  const auto add = [this](std::string_view method, CallService::Method run) {
    service_.AddMethod(fmt::format("/{}/{}", kName, method), std::move(run));
  };
  add("ForkChild", [this](Call& call) {
    return AskAgent<v1::ForkChildRequest, v1::ForkChildResponse>(
        call, [this](auto request, auto caller, auto done) {
          agent_.ForkChild(std::move(request), std::move(caller), std::move(done));
        });
  });
  add("GetChild", [this](Call& call) {
    return AskAgent<v1::GetChildRequest, v1::GetChildResponse>(
        call, [this](auto request, auto, auto done) {
          agent_.GetChild(std::move(request), std::move(done));
        });
  });
  add("ListChildren", [this](Call& call) {
    return AskAgent<v1::ListChildrenRequest, v1::ListChildrenResponse>(
        call, [this](auto request, auto, auto done) {
          agent_.ListChildren(std::move(request), std::move(done));
        });
  });
  add("SendMessage", [this](Call& call) { return SendMessage(call); });
  add("Observe", [this](Call& call) { return Observe(call); });
  add("Attach", [this](Call& call) { return Attach(call); });
  add("Disconnect", [this](Call& call) {
    return AskAgent<v1::DisconnectRequest, v1::DisconnectResponse>(
        call, [this](auto request, auto caller, auto done) {
          agent_.Disconnect(std::move(request), std::move(caller), std::move(done));
        });
  });
  add("SignalChild", [this](Call& call) {
    return AskAgent<v1::SignalChildRequest, v1::SignalChildResponse>(
        call, [this](auto request, auto caller, auto done) {
          agent_.SignalChild(std::move(request), std::move(caller), std::move(done));
        });
  });
  add("GetAgent", [this](Call& call) {
    return AskAgent<v1::GetAgentRequest, v1::GetAgentResponse>(
        call,
        [this](auto request, auto, auto done) { GetAgent(std::move(request), std::move(done)); });
  });
  add("UpgradeAgent", [this](Call& call) {
    return AskAgent<v1::UpgradeAgentRequest, v1::UpgradeAgentResponse>(
        call, [this](auto request, auto, auto done) {
          UpgradeAgent(std::move(request), std::move(done));
        });
  });
}

void BridgeService::GetAgent(v1::GetAgentRequest request, agent::Done<v1::GetAgentResponse> done) {
  // Copied: the callback may outlive the service.
  agent_.GetAgent(std::move(request),
                  [connections_max = ToField(options_.connections_max),
                   write_stalled_ms_max = ToField(options_.write_stalled_ms_max.count()),
                   done = std::move(done)](absl::StatusOr<v1::GetAgentResponse> response) mutable {
                    if (response.ok()) {
                      v1::AgentLimits& limits = *response->mutable_agent()->mutable_limits();
                      limits.set_connections_max(connections_max);
                      limits.set_write_stalled_ms_max(write_stalled_ms_max);
                    }
                    done(std::move(response));
                  });
}

void BridgeService::UpgradeAgent(v1::UpgradeAgentRequest request,
                                 agent::Done<v1::UpgradeAgentResponse> done) {
  v1::GetAgentRequest get;
  get.set_name(request.name());
  // GetAgent knows which agent is meant.
  agent_.GetAgent(std::move(get), [upgrade = options_.upgrade, request = std::move(request),
                                   done = std::move(done)](
                                      const absl::StatusOr<v1::GetAgentResponse>& found) mutable {
    if (!found.ok()) return done(found.status());
    if (upgrade) return upgrade(std::move(request), std::move(done));
    done(MakeError(Reason::kUpgradeRefused,
                   "This agent runs without a keeper, so another one could not go on with its "
                   "children. Stop it when they have ended, and start the new program; deka-agent "
                   "has a keeper unless it is told otherwise (--no-keeper, `survive: false`).",
                   {{"what", "no_keeper"}}));
  });
}

template <typename Request, typename Response, typename Ask>
Task BridgeService::AskAgent(Call& call, Ask ask) {
  Request request;
  const absl::Status received = co_await call.Receive(request);
  if (!received.ok()) {
    co_await call.Finish(received);
    co_return;
  }

  agent::Caller caller{options_.principal, ClientOf(request)};
  Reply<Response> reply(call);
  ask(std::move(request), std::move(caller), reply.Callback());
  co_await call.Until([&] { return reply.has_value() || call.cancelled(); });
  if (!call.cancelled()) co_await Answer(call, *reply);
}

Task BridgeService::SendMessage(Call& call) {
  v1::SendMessageRequest request;
  const absl::Status received = co_await call.Receive(request);
  if (!received.ok()) {
    co_await call.Finish(received);
    co_return;
  }

  agent::Caller caller{options_.principal, request.client()};
  const CallClock::time_point answer_by = AnswerBy(call);
  Reply<v1::SendMessageResponse> reply(call);
  const std::shared_ptr<agent::Cancellation> cancellation =
      agent_.SendMessage(std::move(request), std::move(caller), {}, reply.Callback());
  co_await call.Until([&] { return reply.has_value() || call.cancelled(); }, answer_by);
  if (!reply.has_value()) {
    cancellation->Cancel(
        CallClock::now() >= answer_by
            ? MakeError(Reason::kNotSentDeadline,
                        "The deadline passed before the child took the message, and nothing of it "
                        "was sent. Allow more time, or look whether the child reads.")
            : MakeError(Reason::kNotSentCancelled,
                        "The call was cancelled before the child took the message, and nothing of "
                        "it was sent."));
    co_await call.Until([&] { return reply.has_value() || call.cancelled(); });
  }
  if (!call.cancelled()) co_await Answer(call, *reply);
}

Task BridgeService::Observe(Call& call) {
  v1::ObserveRequest request;
  const absl::Status received = co_await call.Receive(request);
  if (!received.ok()) {
    co_await call.Finish(received);
    co_return;
  }

  Reply<std::unique_ptr<agent::Observation>> reply(call);
  agent_.Observe(std::move(request), reply.Callback());
  co_await call.Until([&] { return reply.has_value() || call.cancelled(); });
  if (call.cancelled()) co_return;
  if (!reply->ok()) {
    co_await call.Finish(reply->status());
    co_return;
  }

  Feed feed(call, std::move(**reply));
  const bool begun = co_await call.SendHeaders();
  if (!begun) co_return;
  bool stopping = false;
  agent::Response response;
  while (!feed.ended()) {
    co_await call.Until(
        [&] { return call.cancelled() || feed.Ready() || (call.stopping() && !stopping); },
        feed.time());
    if (call.cancelled()) co_return;
    if (call.stopping() && !std::exchange(stopping, true)) feed.End(v1::Fin::REASON_AGENT_STOPPING);
    if (!feed.Take(response)) continue;
    const bool written = co_await call.Write(ToObserveResponse(response));
    if (!written) co_return;
  }
  co_await call.Finish(feed.status());
}

// What the coroutines of one Attach and the agent's callbacks share.
struct BridgeService::Attachment {
  std::string child;  // its resource name
  agent::Caller caller;
  bool stop_on_failure = false;

  Answers answers;
  int64_t newest = 0;                                             // event of what it has sent
  std::map<int64_t, std::shared_ptr<agent::Cancellation>> sends;  // not answered yet
  // Requests that later ones wait for, so that all take effect in order.
  size_t unaccepted = 0;
  size_t unaccepted_bytes = 0;
  bool failed = false;  // one of them has

  bool half_closed = false;
  absl::Status violation;  // of the stream's rules, by the client
  bool over = false;       // nothing is read any more

  // Whether the agent may be given the next request.
  bool HasRoom(const v1::AttachRequest& request) const {
    if (answers.size() >= kUnansweredRequestsMax) return false;
    if (stop_on_failure) return unaccepted == 0;
    if (!request.has_send()) return unaccepted == 0;
    return unaccepted == 0 ||
           (unaccepted < kUnacceptedRequestsMax &&
            unaccepted_bytes + request.send().json().size() <= kUnacceptedBytesMax);
  }
};

Task BridgeService::Attach(Call& call) {
  // The first message says with whom.
  v1::AttachRequest request;
  absl::Status refused = co_await call.Receive(request);
  if (refused.ok() && (!request.has_open() || request.number() != 0)) {
    refused = MakeError(Reason::kInvalidArgument,
                        "The first message of an Attach must be `open`, without a number. Then "
                        "come the requests, numbered from 1.");
  }
  refused.Update(agent::ValidateClient(request.open().client()));
  if (!refused.ok()) {
    co_await call.Finish(refused);
    co_return;
  }
  const v1::AttachRequest::Open open = std::move(*request.mutable_open());

  // The child is looked up once: a name may mean another one later.
  v1::GetChildRequest get;
  get.set_name(open.child());
  Reply<v1::GetChildResponse> child(call);
  agent_.GetChild(std::move(get), child.Callback());
  co_await call.Until([&] { return child.has_value() || call.cancelled(); });
  if (call.cancelled()) co_return;
  if (!child->ok()) {
    co_await call.Finish(child->status());
    co_return;
  }
  auto attachment = std::make_shared<Attachment>();
  attachment->child = (*child)->child().name();
  attachment->caller = {options_.principal, open.client()};
  attachment->stop_on_failure = open.stop_on_failure();

  // It is observed before anything is sent to it, so no answer slips between.
  std::optional<Feed> feed;
  if (open.has_observation()) {
    v1::ObserveRequest observe;
    observe.set_parent("agents/-");
    observe.mutable_filter()->add_children(attachment->child);
    *observe.mutable_observation() = open.observation();
    observe.set_client(open.client());
    Reply<std::unique_ptr<agent::Observation>> reply(call);
    agent_.Observe(std::move(observe), reply.Callback());
    co_await call.Until([&] { return reply.has_value() || call.cancelled(); });
    if (call.cancelled()) co_return;
    if (!reply->ok()) {
      co_await call.Finish(reply->status());
      co_return;
    }
    feed.emplace(call, std::move(**reply));
  }
  const bool ends_by_itself = open.observation().events_max() > 0 ||
                              open.observation().has_duration() ||
                              open.observation().until_closed();

  const bool begun = co_await call.SendHeaders();
  if (!begun) co_return;
  call.Run(ReadRequests(call, attachment));

  absl::Status end;
  bool end_asked = false;  // of the observation
  agent::Response response;
  for (;;) {
    Answers& answers = attachment->answers;
    const auto shown = [&] { return !feed || feed->ended(); };
    const auto must_end = [&] {
      return !shown() && !end_asked &&
             (call.stopping() || (attachment->half_closed && answers.empty() && !ends_by_itself));
    };
    const auto complete = [&] {
      return (shown() && answers.empty() && (attachment->half_closed || call.stopping())) ||
             (feed && feed->ended() && !feed->status().ok());
    };
    // Before the await: g++ 12 evaluates both sides of a conditional inside of one.
    const CallClock::time_point time = feed ? feed->time() : Call::kNever;
    co_await call.Until(
        [&] {
          return call.cancelled() || answers.HasNext() || !attachment->violation.ok() ||
                 must_end() || (feed && feed->Ready()) || complete();
        },
        time);
    if (call.cancelled()) break;

    // Answers go ahead of events that wait.
    if (answers.HasNext()) {
      const Answers::Answer answer = answers.Take();
      if (!answer.status.ok() && attachment->stop_on_failure) {
        end = WithNumber(answer.status, answer.number);
        break;
      }
      v1::AttachResponse message;
      if (answer.status.ok()) {
        message.mutable_ack()->set_through(answer.number);
        message.mutable_ack()->set_sequence(attachment->newest);
      } else {
        message.mutable_failed()->set_number(answer.number);
        *message.mutable_failed()->mutable_status() = ToRpcStatus(answer.status);
      }
      const bool written = co_await call.Write(Serialize(message));
      if (!written) break;
      continue;
    }
    if (!attachment->violation.ok()) {
      end = attachment->violation;
      break;
    }
    if (must_end()) {
      end_asked = true;
      feed->End(call.stopping() ? v1::Fin::REASON_AGENT_STOPPING : v1::Fin::REASON_HALF_CLOSED);
    }
    if (feed && feed->Take(response)) {
      const bool written = co_await call.Write(ToAttachResponse(response));
      if (!written) break;
      continue;
    }
    if (complete()) {
      if (feed) end = feed->status();
      if (end.ok() && !attachment->half_closed) end = StoppingError();
      break;
    }
  }

  attachment->over = true;
  feed.reset();
  for (const auto& [number, send] : attachment->sends) {
    send->Cancel(MakeError(Reason::kNotSentCancelled,
                           "The Attach ended before the child took the message, and nothing of it "
                           "was sent."));
  }
  if (!call.cancelled()) co_await call.Finish(end);
}

Task BridgeService::ReadRequests(Call& call, std::shared_ptr<Attachment> attachment) {
  const Call::Remote remote = call.remote();
  Attachment& a = *attachment;
  for (;;) {
    grpc::ByteBuffer bytes;
    const bool read = co_await call.Read(bytes);
    if (!read) break;
    v1::AttachRequest request;
    a.violation.Update(Parse(bytes, request));
    if (a.violation.ok() && request.number() != a.answers.next_number()) {
      a.violation = MakeError(
          Reason::kInvalidArgument,
          fmt::format(
              "`number` is {} after {}. Number the requests 1, 2, 3... in the order in which "
              "they are written.",
              request.number(), a.answers.next_number() - 1),
          {{"field", "number"}});
    }
    if (a.violation.ok() && (request.has_open() || request.request_case() == 0)) {
      a.violation = MakeError(Reason::kInvalidArgument,
                              fmt::format("Request {} is no send, disconnect or signal. Nothing "
                                          "else may follow `open`.",
                                          request.number()),
                              {{"field", "request"}});
    }
    if (!a.violation.ok()) co_return;

    co_await call.Until([&] { return call.cancelled() || a.over || a.HasRoom(request); });
    // Nothing takes effect after a request that failed, if that is what was asked.
    if (call.cancelled() || a.over || (a.stop_on_failure && a.failed)) co_return;

    const int64_t number = a.answers.Add();
    const size_t size = request.send().json().size();
    const bool holds = request.has_send() || a.stop_on_failure;
    if (holds) {
      ++a.unaccepted;
      a.unaccepted_bytes += size;
    }
    // Once, when the agent has accepted the request or answered it, whichever is first.
    const auto accepted = [attachment, size, held = std::make_shared<bool>(holds)] {
      if (!std::exchange(*held, false)) return;
      --attachment->unaccepted;
      attachment->unaccepted_bytes -= size;
    };
    const auto answered = [attachment, number, accepted](absl::Status status) {
      accepted();
      attachment->sends.erase(number);
      attachment->failed |= !status.ok();
      attachment->answers.Set(number, std::move(status));
    };
    const auto callback = [remote, attachment, answered](const auto& reply) {
      int64_t sequence = 0;
      if constexpr (requires { reply->outcome(); }) sequence = reply.ok() ? reply->sequence() : 0;
      remote.Post([attachment, sequence, answered, status = reply.status()] {
        attachment->newest = std::max(attachment->newest, sequence);
        answered(status);
      });
    };

    switch (request.request_case()) {
      case v1::AttachRequest::kSend: {
        v1::SendMessageRequest send;
        send.set_child(a.child);
        send.set_json(std::move(*request.mutable_send()->mutable_json()));
        send.set_answer_when(v1::SEND_OUTCOME_WRITTEN);
        send.set_request_id(std::move(*request.mutable_send()->mutable_request_id()));
        send.set_repeat(request.send().repeat());
        send.set_known_sequence(request.send().known_sequence());
        send.set_client(a.caller.client);
        agent::Agent::SendOptions options;
        options.wait_for_room = true;
        options.on_accepted = [remote, accepted] { remote.Post(accepted); };
        a.sends[number] =
            agent_.SendMessage(std::move(send), a.caller, std::move(options), callback);
        break;
      }
      case v1::AttachRequest::kDisconnect: {
        v1::DisconnectRequest disconnect;
        disconnect.set_child(a.child);
        disconnect.set_mode(request.disconnect().mode());
        disconnect.set_client(a.caller.client);
        agent_.Disconnect(std::move(disconnect), a.caller, callback);
        break;
      }
      case v1::AttachRequest::kSignal: {
        v1::SignalChildRequest signal;
        signal.set_child(a.child);
        signal.set_signal(request.signal().signal());
        signal.set_client(a.caller.client);
        agent_.SignalChild(std::move(signal), a.caller, callback);
        break;
      }
      case v1::AttachRequest::kOpen:
      case v1::AttachRequest::REQUEST_NOT_SET:
        break;  // refused above
    }
  }
  a.half_closed = true;
}

}  // namespace deka::server
