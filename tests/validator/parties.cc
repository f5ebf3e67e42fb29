#include "tests/validator/parties.h"

#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>
#include <grpcpp/support/channel_arguments.h>

#include <algorithm>
#include <csignal>
#include <thread>

#include "fmt/format.h"
#include "google/rpc/status.pb.h"

namespace deka::validator {
namespace {

using std::chrono::steady_clock;
using std::chrono::system_clock;

constexpr int kWindowBytes = 16 << 10;
constexpr int kMessageBytesMax = 64 << 20;
// After so long somebody else is asked.
constexpr std::chrono::milliseconds kMoments{200};
// Later than where an observer pauses, it reads on.
constexpr int64_t kPauseEvents = 500;
// A queue is full after so many messages, if its child reads nothing.
constexpr int kFillMax = 60;

std::shared_ptr<grpc::Channel> Connect(const std::string& target, bool small_window) {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  arguments.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
  if (small_window) arguments.SetInt(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, kWindowBytes);
  arguments.SetMaxReceiveMessageSize(kMessageBytesMax);
  return grpc::CreateCustomChannel(target, grpc::InsecureChannelCredentials(), arguments);
}

google::rpc::Status ToRecord(const grpc::Status& status) {
  google::rpc::Status record;
  if (status.error_details().empty() || !record.ParseFromString(status.error_details())) {
    record.Clear();
  }
  record.set_code(status.error_code());
  record.set_message(status.error_message());
  return record;
}

}  // namespace

v1::ForkChildRequest Scene::ForkOf(int child) const {
  const ChildPlan& of = plan.children[static_cast<size_t>(child)];
  v1::ForkChildRequest request;
  request.set_parent("agents/-");
  *request.mutable_spec() = of.spec;
  request.mutable_spec()->set_program(program);
  request.mutable_spec()->add_args(AccountOf(child));
  request.mutable_spec()->add_args(std::to_string(of.seed));
  for (const std::string& step : of.steps) request.mutable_spec()->add_args(step);
  request.set_request_id(fmt::format("fork-{}", child));
  return request;
}

std::string Scene::AccountOf(int child) const {
  return fmt::format("{}/account-{}", directory, child);
}

void Scene::Forked(int child, const v1::Child& description) {
  ipc::MutexLock lock(mutex_);
  children_[static_cast<size_t>(child)] = description;
  changed_.NotifyAll();
}

std::optional<v1::Child> Scene::Known(int child) const {
  ipc::MutexLock lock(mutex_);
  return children_[static_cast<size_t>(child)];
}

void Scene::Saw(const v1::Event& event) {
  ipc::MutexLock lock(mutex_);
  seen_ = event.sequence();
  if (event.has_exited()) states_[event.child()] = v1::Child::STATE_EXITED;
  if (event.has_closed()) states_[event.child()] = v1::Child::STATE_CLOSED;
  changed_.NotifyAll();
}

int64_t Scene::seen() const {
  ipc::MutexLock lock(mutex_);
  return seen_;
}

bool Scene::Await(const std::function<bool()>& happened, std::chrono::milliseconds limit) const {
  const auto deadline = steady_clock::now() + limit;
  ipc::MutexLock lock(mutex_);
  while (!happened()) {
    if (!changed_.WaitUntil(mutex_, deadline)) return happened();
  }
  return true;
}

bool Scene::Is(int child, v1::Child::State state) const {
  const std::optional<v1::Child>& known = children_[static_cast<size_t>(child)];
  if (!known) return false;
  const auto found = states_.find(known->name().substr(known->name().rfind('/') + 1));
  return found != states_.end() && found->second >= state;
}

bool Scene::AwaitState(int child, v1::Child::State state) const {
  return Await([&]() ABSL_NO_THREAD_SAFETY_ANALYSIS { return Is(child, state); }, kMoments);
}

bool Scene::AwaitSeen(int64_t sequence) const {
  return Await(
      [&]() ABSL_NO_THREAD_SAFETY_ANALYSIS { return seen_ >= sequence || played_ || stopping_; });
}

bool Scene::AwaitPlayed() const {
  return Await([&]() ABSL_NO_THREAD_SAFETY_ANALYSIS { return played_ || stopping_; });
}

void Scene::Played() {
  ipc::MutexLock lock(mutex_);
  played_ = true;
  changed_.NotifyAll();
}

void Scene::Stop() {
  ipc::MutexLock lock(mutex_);
  stopping_ = true;
  changed_.NotifyAll();
}

bool Scene::stopping() const {
  ipc::MutexLock lock(mutex_);
  return stopping_;
}

Party::Party(Scene& scene, std::string name, bool small_window)
    : scene_(scene),
      recorder_(scene.clock, std::move(name)),
      channel_(Connect(scene.target, small_window)),
      stub_(v1::BridgeService::NewStub(channel_)) {}

void Party::HangUp() {
  stub_.reset();
  channel_.reset();
}

Recording Party::TakeRecords() {
  Recording records = std::move(recorder_.records());
  for (const std::unique_ptr<Recorder>& more : more_recorders_) {
    std::move(more->records().begin(), more->records().end(), std::back_inserter(records));
  }
  return records;
}

void Party::AddEnd(Recorder& recorder, int64_t call, const grpc::Status& status) {
  recorder.Add(call, What::kEnded, ToRecord(status));
}

template <typename Request, typename Response>
std::optional<Response> Party::Ask(grpc::Status (v1::BridgeService::Stub::*method)(
                                       grpc::ClientContext*, const Request&, Response*),
                                   const Request& request, int deadline_ms) {
  const int64_t call = recorder_.NewCall();
  recorder_.Add(call, What::kAsked, request);
  grpc::ClientContext context;
  context.set_deadline(system_clock::now() + (deadline_ms > 0
                                                  ? std::chrono::milliseconds(deadline_ms)
                                                  : std::chrono::milliseconds(kHangs)));
  Response response;
  const grpc::Status status = (stub_.get()->*method)(&context, request, &response);
  if (!status.ok()) {
    AddEnd(recorder_, call, status);
    return std::nullopt;
  }
  recorder_.Add(call, What::kAnswered, response);
  return response;
}

std::optional<v1::ListChildrenResponse> Party::List() {
  v1::ListChildrenRequest request;
  request.set_parent("agents/-");
  return Ask(&v1::BridgeService::Stub::ListChildren, request);
}

void Party::Fork(int child) {
  v1::ForkChildRequest request = scene_.ForkOf(child);
  request.set_client(name());
  if (const auto response = Ask(&v1::BridgeService::Stub::ForkChild, request)) {
    scene_.Forked(child, response->child());
  }
}

std::optional<v1::SendMessageResponse> Party::Send(const v1::SendMessageRequest& request,
                                                   int deadline_ms, int cancel_us) {
  if (cancel_us < 0) return Ask(&v1::BridgeService::Stub::SendMessage, request, deadline_ms);
  const int64_t call = recorder_.NewCall();
  recorder_.Add(call, What::kAsked, request);
  grpc::ClientContext context;
  context.set_deadline(system_clock::now() + kHangs);
  grpc::CompletionQueue queue;
  v1::SendMessageResponse response;
  grpc::Status status;
  const auto reader = stub_->AsyncSendMessage(&context, request, &queue);
  reader->Finish(&response, &status, nullptr);
  void* tag = nullptr;
  bool ok = false;
  if (queue.AsyncNext(&tag, &ok, system_clock::now() + std::chrono::microseconds(cancel_us)) ==
      grpc::CompletionQueue::TIMEOUT) {
    context.TryCancel();
    queue.Next(&tag, &ok);
  }
  if (!status.ok()) {
    AddEnd(recorder_, call, status);
    return std::nullopt;
  }
  recorder_.Add(call, What::kAnswered, response);
  return response;
}

void Party::Signal(const std::string& child, int signal) {
  v1::SignalChildRequest request;
  request.set_child(child);
  request.set_signal(signal);
  request.set_client(name());
  Ask(&v1::BridgeService::Stub::SignalChild, request);
}

void Party::Disconnect(const std::string& child, v1::DisconnectMode mode) {
  v1::DisconnectRequest request;
  request.set_child(child);
  request.set_mode(mode);
  request.set_client(name());
  Ask(&v1::BridgeService::Stub::Disconnect, request);
}

int64_t Party::Observe(
    const v1::ObserveRequest& request,
    const std::function<bool(int64_t call, const v1::ObserveResponse&)>& enough) {
  const int64_t call = recorder_.NewCall();
  recorder_.Add(call, What::kAsked, request);
  grpc::ClientContext context;
  context.set_deadline(system_clock::now() + 3 * kHangs);
  const auto reader = stub_->Observe(&context, request);
  int64_t position = 0;
  bool cancelled = false;
  for (;;) {
    v1::ObserveResponse response;
    if (!reader->Read(&response)) break;
    if (cancelled) continue;
    if (response.has_attached()) position = response.attached().start().sequence();
    if (response.has_heartbeat()) position = response.heartbeat().cursor().sequence();
    if (response.has_fin()) position = response.fin().cursor().sequence();
    if (response.batch().events_size() > 0) {
      position = response.batch().events().rbegin()->sequence();
    }
    const auto body = std::make_shared<const v1::ObserveResponse>(std::move(response));
    recorder_.Add(call, What::kAnswered,
                  std::static_pointer_cast<const google::protobuf::Message>(body));
    if (!enough(call, *body)) continue;
    cancelled = true;
    recorder_.Add(call, What::kCancelled);
    context.TryCancel();
  }
  const grpc::Status status = reader->Finish();
  if (!cancelled) AddEnd(recorder_, call, status);
  return position;
}

v1::ObserveRequest Observer::RequestOf(const ObservationPlan& plan) const {
  v1::ObserveRequest request;
  request.set_parent("agents/-");
  request.set_client(name());
  *request.mutable_filter() = plan.filter;
  for (const int child : plan.children) {
    const std::optional<v1::Child> known = scene_.Known(child);
    if (!known) continue;
    // By each of its names.
    request.mutable_filter()->add_children(
        child % 3 == 0   ? known->name()
        : child % 3 == 1 ? known->display_name()
                         : known->name().substr(known->name().rfind('/') + 1));
  }
  v1::Observation& observation = *request.mutable_observation();
  observation = plan.observation;
  observation.clear_start();
  if (request.filter().children().empty()) observation.clear_until_closed();
  v1::ObserveStart& start = *observation.mutable_start();
  switch (plan.start) {
    case ObservationPlan::Start::kLatest:
      start.set_latest(true);
      break;
    case ObservationPlan::Start::kEarliest:
      start.set_earliest(true);
      break;
    case ObservationPlan::Start::kLast:
      start.set_last(plan.observation.start().last());
      break;
    case ObservationPlan::Start::kSince:
      *start.mutable_since() = time_;
      break;
    case ObservationPlan::Start::kBeginning:
      *start.mutable_after() = scene_.beginning;
      break;
    case ObservationPlan::Start::kContinue:
    case ObservationPlan::Start::kOlder:
      *start.mutable_after() = scene_.beginning;
      start.mutable_after()->set_sequence(
          plan.start == ObservationPlan::Start::kOlder ? position_ / 2 : position_.load());
      break;
    case ObservationPlan::Start::kOtherEpoch:
      *start.mutable_after() = scene_.beginning;
      start.mutable_after()->set_epoch(scene_.beginning.epoch() - 1);
      start.mutable_after()->set_sequence(position_);
      break;
  }
  return request;
}

void Observer::Run() {
  for (const ObservationPlan& plan : plan_.observations) {
    if (scene_.stopping()) return;
    Run(plan);
  }
}

void Observer::Run(const ObservationPlan& plan) {
  int64_t events = 0;
  int responses = 0;
  const int64_t position =
      Observe(RequestOf(plan), [&](int64_t call, const v1::ObserveResponse& response) {
        events += response.batch().events_size();
        if (response.batch().events_size() > 0) {
          position_ = response.batch().events().rbegin()->sequence();
          time_ = response.batch().events().rbegin()->time();
        }
        if (responses++ == plan.pause_after) {
          recorder_.Add(call, What::kPaused);
          const bool happened = plan.pause_to_the_end
                                    ? scene_.AwaitPlayed()
                                    : scene_.AwaitSeen(scene_.seen() + kPauseEvents);
          recorder_.Add(call, happened ? What::kResumed : What::kGaveUp);
        }
        return plan.break_off_after >= 0 && events >= plan.break_off_after && !response.has_fin();
      });
  // One that never stood leaves it where it was.
  if (responses > 0) position_ = position;
}

void Sender::Run() {
  for (const Step& step : plan_.steps) Do(step);
}

std::string Sender::Body(int bytes) {
  ++number_;
  const std::string pad(static_cast<size_t>(bytes), 'x');
  switch (number_ % 7) {
    case 0:
      return fmt::format("{{\n\"from\": \"{}\",\n\"n\": {},\n\"pad\": \"{}\"\n}}", name(), number_,
                         pad);
    case 1:
      return fmt::format("\"{} {} {}\"", name(), number_, pad);
    default:
      return fmt::format("{{\"from\":\"{}\",\"n\":{},\"pad\":\"{}\"}}", name(), number_, pad);
  }
}

v1::SendMessageRequest Sender::Message(const std::string& child, const Step& step) {
  v1::SendMessageRequest request;
  request.set_child(child);
  request.set_json(Body(step.bytes));
  request.set_client(name());
  if (step.accepted) request.set_answer_when(v1::SEND_OUTCOME_ACCEPTED);
  if (step.with_id) request.set_request_id(fmt::format("{}/{}", name(), number_));
  return request;
}

void Sender::Do(const Step& step) {
  if (step.kind == Step::Kind::kFork) return Fork(step.child);
  const std::optional<v1::Child> known = scene_.Known(step.child);
  if (!known) return;
  const std::string& child = known->name();
  switch (step.kind) {
    case Step::Kind::kSend: {
      const v1::SendMessageRequest request = Message(child, step);
      Send(request, step.deadline_ms, step.cancel_us);
      if (step.with_id) sent_.push_back(request);
      break;
    }
    case Step::Kind::kRepeat: {
      if (sent_.size() <= static_cast<size_t>(step.number)) break;
      v1::SendMessageRequest request = sent_[sent_.size() - 1 - static_cast<size_t>(step.number)];
      request.set_repeat(step.bytes % 2 == 0);
      Send(request, step.deadline_ms);
      // With another body it must be refused.
      if (step.bytes % 5 != 0) break;
      request.set_json(Body(0));
      Send(request);
      break;
    }
    case Step::Kind::kShared: {
      v1::SendMessageRequest request = Message(child, step);
      request.set_request_id(fmt::format("shared-{}", step.number));
      request.set_json(fmt::format("{{\"shared\":{}}}", step.number));
      Send(request, step.deadline_ms);
      break;
    }
    case Step::Kind::kUnknown: {
      v1::SendMessageRequest request = Message(child, step);
      request.set_request_id(fmt::format("{}/never-{}", name(), number_));
      request.set_repeat(true);
      Send(request);
      break;
    }
    case Step::Kind::kBad:
      Bad(child, step);
      break;
    case Step::Kind::kFill:
      Fill(child, step);
      break;
    case Step::Kind::kAttach:
      Attach(child, step);
      break;
    case Step::Kind::kSignal:
      Signal(child, SIGUSR1);
      break;
    case Step::Kind::kDisconnect:
      Disconnect(child, step.mode);
      break;
    case Step::Kind::kFork:
      break;
  }
}

void Sender::Bad(const std::string& child, const Step& step) {
  v1::SendMessageRequest request = Message(child, step);
  switch (step.number) {
    case 0:
      request.set_json(request.json() + " and more");
      break;
    case 1: {
      const auto bytes_max =
          scene_.plan.children[static_cast<size_t>(step.child)].spec.limits().message_bytes_max();
      request.set_json(Body(static_cast<int>(bytes_max)));
      break;
    }
    case 2:
      request.set_json(
          fmt::format("{{\"cmd\":\"NODE_HANDLE_ACK\",\"from\":\"{}\",\"n\":{}}}", name(), number_));
      break;
    default:
      request.set_child("agents/-/children/nobody");
      break;
  }
  Send(request);
}

void Sender::Fill(const std::string& child, const Step& step) {
  for (int i = 0; i < kFillMax; ++i) {
    Step each = step;
    each.with_id = i % 7 != 6;
    each.accepted = i % 5 != 4;
    // Nobody reads: those that wait for it are taken back.
    const v1::SendMessageRequest request = Message(child, each);
    const bool sent = Send(request, each.accepted ? 0 : 3, i % 10 == 9 ? 500 : -1).has_value();
    if (each.accepted && !sent) break;
  }
}

void Sender::Attach(const std::string& child, const Step& step) {
  const int64_t call = recorder_.NewCall();
  grpc::ClientContext context;
  context.set_deadline(system_clock::now() + kHangs);
  const auto stream = stub().Attach(&context);
  more_recorders_.push_back(std::make_unique<Recorder>(scene_.clock, name()));
  Recorder& answers = *more_recorders_.back();
  std::atomic<bool> cancelled = false;
  std::thread reader([&] {
    for (;;) {
      v1::AttachResponse response;
      if (!stream->Read(&response)) return;
      if (!cancelled) answers.Add(call, What::kAnswered, std::move(response));
    }
  });
  bool open = true;
  const auto write = [&](const v1::AttachRequest& request) {
    if (!open) return;
    recorder_.Add(call, What::kAsked, request);
    open = stream->Write(request);
  };
  v1::AttachRequest request;
  request.mutable_open()->set_child(child);
  request.mutable_open()->set_client(name());
  request.mutable_open()->set_stop_on_failure(step.stop_on_failure);
  if (step.observes) {
    v1::ObserveStart& start = *request.mutable_open()->mutable_observation()->mutable_start();
    if (step.with_id) {
      start.set_last(20);
    } else {
      start.set_latest(true);
    }
  }
  write(request);
  int64_t number = 0;
  for (int i = 0; i < step.count && !(step.breaks_off && i == step.count / 2); ++i) {
    request.Clear();
    request.set_number(++number);
    request.mutable_send()->set_json(Body(step.bytes / 2));
    if (step.with_id) {
      request.mutable_send()->set_request_id(fmt::format("{}/{}", name(), number_));
    }
    write(request);
    if (i == step.signal_at) {
      request.Clear();
      request.set_number(++number);
      request.mutable_signal()->set_signal(SIGUSR1);
      write(request);
    }
  }
  if (step.breaks_off) {
    cancelled = true;
    recorder_.Add(call, What::kCancelled);
    context.TryCancel();
  } else {
    stream->WritesDone();
  }
  reader.join();
  const grpc::Status status = stream->Finish();
  if (!cancelled) AddEnd(answers, call, status);
}

}  // namespace deka::validator
