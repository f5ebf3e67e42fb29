#include "sdk/cpp/fake_agent.h"

#include <stdlib.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <iterator>
#include <utility>

#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "grpcpp/security/server_credentials.h"
#include "grpcpp/server_builder.h"

namespace deka {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr char kPrefix[] = "agents/fake/children/";

std::string IdOf(const std::string& name) { return name.substr(name.rfind('/') + 1); }

bool FitsKind(const v1::Event& event, const v1::Observation& observation) {
  static constexpr std::pair<v1::Event::KindCase, v1::EventKind> kKinds[] = {
      {v1::Event::kFromChild, v1::EVENT_KIND_MESSAGE},
      {v1::Event::kToChild, v1::EVENT_KIND_MESSAGE},
      {v1::Event::kStarted, v1::EVENT_KIND_STARTED},
      {v1::Event::kDisconnected, v1::EVENT_KIND_DISCONNECTED},
      {v1::Event::kExited, v1::EVENT_KIND_EXITED},
      {v1::Event::kClosed, v1::EVENT_KIND_CLOSED},
  };
  const auto& asked = observation.kinds();
  return asked.empty() || std::any_of(std::begin(kKinds), std::end(kKinds), [&](const auto& kind) {
           return kind.first == event.kind_case() &&
                  std::find(asked.begin(), asked.end(), kind.second) != asked.end();
         });
}

// Knows pointers to members of the outermost object, which is written without spaces.
bool FitsContent(const std::string& json, const v1::ContentFilter& where) {
  const std::string member = "\"" + where.pointer().substr(1) + "\":";
  return json.find(where.has_equals() ? member + where.equals() + "," : member) !=
             std::string::npos ||
         (where.has_equals() && json.find(member + where.equals() + "}") != std::string::npos);
}

bool Fits(const v1::Event& event, const v1::Observation& observation) {
  if (!FitsKind(event, observation)) {
    return false;
  }
  if (!event.has_from_child() && !event.has_to_child()) {
    return true;
  }
  return observation.direction() !=
             (event.has_from_child() ? v1::DIRECTION_TO_CHILD : v1::DIRECTION_FROM_CHILD) &&
         std::all_of(observation.where().begin(), observation.where().end(),
                     [&](const auto& where) { return FitsContent(event.json(), where); });
}

bool IsRefusal(const std::optional<grpc::Status>& answer) {
  return answer.has_value() && !answer->error_details().empty();
}

}  // namespace

FakeAgent::FakeAgent() {
  std::string pattern = "/tmp/deka-fake-XXXXXX";
  directory_ = mkdtemp(pattern.data());
  Come();
}

FakeAgent::~FakeAgent() {
  Go();
  std::filesystem::remove_all(directory_);
}

void FakeAgent::Come() {
  {
    ipc::MutexLock lock(mutex_);
    going_ = false;
  }
  grpc::ServerBuilder builder;
  builder.AddListeningPort(target(), grpc::InsecureServerCredentials());
  builder.RegisterService(this);
  builder.SetMaxReceiveMessageSize(-1);
  server_ = builder.BuildAndStart();
}

void FakeAgent::Go() {
  if (server_ == nullptr) {
    return;
  }
  {
    ipc::MutexLock lock(mutex_);
    going_ = true;
    changed_.NotifyAll();
  }
  server_->Shutdown(std::chrono::system_clock::now());
  server_.reset();
}

void FakeAgent::Append(const std::string& child, v1::Event event) {
  ipc::MutexLock lock(mutex_);
  AppendLocked(child, std::move(event));
}

void FakeAgent::AppendLocked(const std::string& name, v1::Event event) {
  Child& child = children_[name];
  event.set_sequence(++head_);
  event.set_child_sequence(static_cast<int64_t>(child.events.size()) + 1);
  event.set_child(name);
  if (event.kind_case() == v1::Event::KIND_NOT_SET) {
    event.mutable_from_child();
    if (event.payload_case() == v1::Event::PAYLOAD_NOT_SET) {
      event.set_json("1");
    }
  }
  child.description.set_name(kPrefix + name);
  child.description.set_display_name(name);
  child.description.set_pid(4711);
  child.description.set_last_sequence(head_);
  child.description.set_last_child_sequence(event.child_sequence());
  if (child.description.state() == v1::Child::STATE_UNSPECIFIED) {
    child.description.set_state(v1::Child::STATE_CONNECTED);
  }
  if (event.has_exited()) {
    *child.description.mutable_exit_status() = event.exited().status();
    child.description.set_state(v1::Child::STATE_EXITED);
  }
  child.events.push_back(std::move(event));
  changed_.NotifyAll();
}

void FakeAgent::TurnOver(const std::string& child, int64_t count) {
  ipc::MutexLock lock(mutex_);
  children_[child].turned_over = count;
}

void FakeAgent::Forget() {
  ipc::MutexLock lock(mutex_);
  children_.clear();
  ++epoch_;
  head_ = 0;
}

void FakeAgent::AwaitEvents(int64_t count) const {
  const auto deadline = steady_clock::now() + std::chrono::seconds(20);
  ipc::MutexLock lock(mutex_);
  while (head_ < count && changed_.WaitUntil(mutex_, deadline)) {
  }
}

std::vector<std::string> FakeAgent::requests() const {
  ipc::MutexLock lock(mutex_);
  return requests_;
}

void FakeAgent::AwaitRequests(size_t count) const {
  const auto deadline = steady_clock::now() + std::chrono::seconds(20);
  ipc::MutexLock lock(mutex_);
  while (requests_.size() < count && changed_.WaitUntil(mutex_, deadline)) {
  }
}

void FakeAgent::SetRefuse(Refuse refuse) {
  ipc::MutexLock lock(mutex_);
  refuse_ = std::move(refuse);
}

void FakeAgent::SetOnSent(OnSent on_sent) {
  ipc::MutexLock lock(mutex_);
  on_sent_ = std::move(on_sent);
}

void FakeAgent::CutObserve(int64_t responses, grpc::Status status) {
  ipc::MutexLock lock(mutex_);
  cut_observe_ = Cut{responses, std::move(status)};
}

void FakeAgent::SetFin(v1::Fin::Reason reason) {
  ipc::MutexLock lock(mutex_);
  fin_ = reason;
  changed_.NotifyAll();
}

void FakeAgent::CutAttach(int64_t requests, grpc::Status status) {
  ipc::MutexLock lock(mutex_);
  cut_attach_ = Cut{requests, std::move(status)};
}

void FakeAgent::ForgetRequestIds() {
  ipc::MutexLock lock(mutex_);
  request_ids_.clear();
}

void FakeAgent::SetAttachReads(bool reads) {
  ipc::MutexLock lock(mutex_);
  attach_reads_ = reads;
  changed_.NotifyAll();
}

grpc::Status FakeAgent::Refusal(grpc::StatusCode code, const std::string& reason,
                                const std::map<std::string, std::string>& metadata) {
  google::rpc::ErrorInfo info;
  info.set_reason(reason);
  info.set_domain("deka.bridge");
  info.mutable_metadata()->insert(metadata.begin(), metadata.end());
  google::rpc::Status status;
  status.set_code(code);
  status.set_message("refused: " + reason);
  status.add_details()->PackFrom(info);
  return grpc::Status(code, status.message(), status.SerializeAsString());
}

std::optional<grpc::Status> FakeAgent::Take(const google::protobuf::Message& request) {
  Refuse refuse;
  {
    ipc::MutexLock lock(mutex_);
    requests_.push_back(request.GetDescriptor()->name() + " " + request.ShortDebugString());
    changed_.NotifyAll();
    refuse = refuse_;
  }
  return refuse ? refuse(request) : std::nullopt;
}

v1::Cursor FakeAgent::CursorAt(int64_t sequence) const {
  v1::Cursor cursor;
  cursor.set_agent("fake");
  cursor.set_epoch(epoch_);
  cursor.set_sequence(sequence);
  return cursor;
}

grpc::Status FakeAgent::ForkChild(grpc::ServerContext*, const v1::ForkChildRequest* request,
                                  v1::ForkChildResponse* response) {
  if (const auto refused = Take(*request)) {
    return *refused;
  }
  ipc::MutexLock lock(mutex_);
  const std::string& name = request->spec().display_name();
  *response->mutable_cursor() = CursorAt(head_);
  v1::Event started;
  started.mutable_started();
  AppendLocked(name, std::move(started));
  *response->mutable_child() = children_[name].description;
  return grpc::Status::OK;
}

grpc::Status FakeAgent::GetChild(grpc::ServerContext*, const v1::GetChildRequest* request,
                                 v1::GetChildResponse* response) {
  if (const auto refused = Take(*request)) {
    return *refused;
  }
  ipc::MutexLock lock(mutex_);
  const auto child = children_.find(IdOf(request->name()));
  if (child == children_.end()) {
    return Refusal(grpc::StatusCode::NOT_FOUND, "CHILD_NOT_FOUND");
  }
  *response->mutable_child() = child->second.description;
  return grpc::Status::OK;
}

grpc::Status FakeAgent::ListChildren(grpc::ServerContext*, const v1::ListChildrenRequest* request,
                                     v1::ListChildrenResponse* response) {
  if (const auto refused = Take(*request)) {
    return *refused;
  }
  // Pages of one child each; the token is the last one's id.
  ipc::MutexLock lock(mutex_);
  if (request->page_token().empty()) {
    *response->mutable_cursor() = CursorAt(head_);
  }
  const auto child = children_.upper_bound(request->page_token());
  if (child != children_.end()) {
    *response->add_children() = child->second.description;
    if (std::next(child) != children_.end()) {
      response->set_next_page_token(child->first);
    }
  }
  return grpc::Status::OK;
}

template <typename Request>
grpc::Status FakeAgent::Send(const std::string& child, const Request& request, int64_t& sequence) {
  ipc::MutexLock lock(mutex_);
  if (const auto sent = request_ids_.find(request.request_id()); sent != request_ids_.end()) {
    sequence = sent->second;
    return grpc::Status::OK;
  }
  if (request.repeat()) {
    return Refusal(grpc::StatusCode::UNKNOWN, "OUTCOME_UNKNOWN");
  }
  v1::Event event;
  event.mutable_to_child()->set_request_id(request.request_id());
  event.set_json(request.json());
  AppendLocked(child, std::move(event));
  sequence = head_;
  request_ids_[request.request_id()] = sequence;
  return grpc::Status::OK;
}

grpc::Status FakeAgent::SendMessage(grpc::ServerContext*, const v1::SendMessageRequest* request,
                                    v1::SendMessageResponse* response) {
  const std::optional<grpc::Status> answer = Take(*request);
  if (IsRefusal(answer)) {
    return *answer;
  }
  int64_t sequence = 0;
  const grpc::Status sent = Send(IdOf(request->child()), *request, sequence);
  response->set_outcome(v1::SEND_OUTCOME_WRITTEN);
  response->set_sequence(sequence);
  OnSent on_sent;
  {
    ipc::MutexLock lock(mutex_);
    on_sent = on_sent_;
  }
  if (on_sent && sent.ok() && !request->repeat()) {
    on_sent(*request);
  }
  return answer.value_or(sent);
}

grpc::Status FakeAgent::Disconnect(grpc::ServerContext*, const v1::DisconnectRequest* request,
                                   v1::DisconnectResponse*) {
  return Take(*request).value_or(grpc::Status::OK);
}

grpc::Status FakeAgent::SignalChild(grpc::ServerContext*, const v1::SignalChildRequest* request,
                                    v1::SignalChildResponse*) {
  return Take(*request).value_or(grpc::Status::OK);
}

grpc::Status FakeAgent::GetAgent(grpc::ServerContext*, const v1::GetAgentRequest* request,
                                 v1::GetAgentResponse* response) {
  if (const auto refused = Take(*request)) {
    return *refused;
  }
  ipc::MutexLock lock(mutex_);
  v1::Agent& agent = *response->mutable_agent();
  agent.set_name("agents/fake");
  agent.set_epoch(epoch_);
  agent.set_head(head_);
  agent.set_children(static_cast<int32_t>(children_.size()));
  return grpc::Status::OK;
}

std::vector<v1::ObserveResponse> FakeAgent::Beginning(const v1::ObserveStart& start,
                                                      int64_t& after) const {
  v1::ObserveResponse gap_of_epoch;
  after = head_;
  if (start.has_after() && start.after().epoch() != epoch_) {
    after = 0;
    v1::Gap& gap = *gap_of_epoch.mutable_gap();
    gap.set_reason(v1::Gap::REASON_OTHER_EPOCH);
    gap.set_inexact(true);
    gap.set_to_sequence(start.after().sequence());
  } else if (start.has_after()) {
    after = start.after().sequence();
  } else if (start.has_earliest()) {
    after = 0;
  } else if (start.has_last()) {
    after = std::max<int64_t>(0, head_ - start.last());
  }

  std::vector<v1::ObserveResponse> responses;
  v1::Attached& attached = *responses.emplace_back().mutable_attached();
  attached.set_agent("fake");
  attached.set_epoch(epoch_);
  attached.set_first_sequence(1);
  attached.set_head(head_);
  *attached.mutable_start() = CursorAt(after);
  if (gap_of_epoch.has_gap()) {
    responses.push_back(gap_of_epoch);
  }
  // A snapshot in as many pieces as there are children.
  for (const auto& [name, child] : children_) {
    *responses.emplace_back().mutable_snapshot()->add_children() = child.description;
  }
  responses.emplace_back().mutable_snapshot_complete()->set_head(head_);
  for (const auto& [name, child] : children_) {
    if (child.turned_over == 0) {
      continue;
    }
    const v1::Event& last = child.events[child.turned_over - 1];
    if (last.sequence() > after) {
      v1::Gap& gap = *responses.emplace_back().mutable_gap();
      gap.set_child(name);
      if (child.events.front().sequence() > after) {
        gap.set_from_child_sequence(1);
      }
      gap.set_to_child_sequence(last.child_sequence());
      gap.set_to_sequence(last.sequence());
      gap.set_reason(v1::Gap::REASON_LOG_TURNED_OVER);
    }
  }
  return responses;
}

std::optional<v1::ObserveResponse> FakeAgent::NextBatch(const v1::Observation& observation,
                                                        int64_t& after) const {
  std::vector<const v1::Event*> events;
  for (const auto& [name, child] : children_) {
    for (const v1::Event& event : child.events) {
      if (event.sequence() > after && event.child_sequence() > child.turned_over &&
          Fits(event, observation)) {
        events.push_back(&event);
      }
    }
  }
  if (events.empty()) {
    return std::nullopt;
  }
  std::sort(events.begin(), events.end(),
            [](const auto* a, const auto* b) { return a->sequence() < b->sequence(); });
  events.resize(std::min<size_t>(events.size(), 2));
  v1::ObserveResponse response;
  for (const v1::Event* event : events) {
    *response.mutable_batch()->add_events() = *event;
    after = event->sequence();
  }
  return response;
}

grpc::Status FakeAgent::Observe(grpc::ServerContext* context, const v1::ObserveRequest* request,
                                grpc::ServerWriter<v1::ObserveResponse>* writer) {
  if (const auto refused = Take(*request)) {
    return *refused;
  }
  std::optional<Cut> cut;
  std::vector<v1::ObserveResponse> waiting;
  int64_t after = 0;
  {
    ipc::MutexLock lock(mutex_);
    cut = std::exchange(cut_observe_, std::nullopt);
    waiting = Beginning(request->observation().start(), after);
  }
  int64_t sent = 0;
  int64_t events = 0;
  while (!context->IsCancelled()) {
    for (const v1::ObserveResponse& response : std::exchange(waiting, {})) {
      if (cut.has_value() && sent == cut->count) {
        return cut->status;
      }
      writer->Write(response);
      ++sent;
      if (response.has_fin()) {
        return grpc::Status::OK;
      }
      events += response.batch().events_size();
    }
    if (cut.has_value() && sent == cut->count) {
      return cut->status;
    }
    ipc::MutexLock lock(mutex_);
    if (going_) {
      break;
    }
    v1::ObserveResponse fin;
    *fin.mutable_fin()->mutable_cursor() = CursorAt(after);
    if (request->observation().events_max() > 0 && events >= request->observation().events_max()) {
      fin.mutable_fin()->set_reason(v1::Fin::REASON_EVENTS_MAX);
      waiting.push_back(fin);
    } else if (std::optional<v1::ObserveResponse> batch =
                   NextBatch(request->observation(), after)) {
      const int64_t room = request->observation().events_max() - events;
      if (request->observation().events_max() > 0 && batch->batch().events_size() > room) {
        batch->mutable_batch()->mutable_events()->DeleteSubrange(
            static_cast<int>(room), batch->batch().events_size() - static_cast<int>(room));
      }
      waiting.push_back(*batch);
    } else if (fin_.has_value()) {
      fin.mutable_fin()->set_reason(*fin_);
      waiting.push_back(fin);
    } else {
      // Nobody tells when a call is cancelled.
      changed_.WaitUntil(mutex_, steady_clock::now() + milliseconds(10));
    }
  }
  return grpc::Status::CANCELLED;
}

grpc::Status FakeAgent::Attach(
    grpc::ServerContext* context,
    grpc::ServerReaderWriter<v1::AttachResponse, v1::AttachRequest>* stream) {
  v1::AttachRequest open;
  if (!stream->Read(&open)) {
    return grpc::Status::CANCELLED;
  }
  if (const auto refused = Take(open)) {
    return *refused;
  }
  std::optional<Cut> cut;
  int64_t after = 0;
  const bool observes = open.open().has_observation();
  const auto show = [stream, observes](const v1::ObserveResponse& response) {
    if (observes) {
      v1::AttachResponse observed;
      *observed.mutable_observed() = response;
      stream->Write(observed);
    }
  };
  {
    ipc::MutexLock lock(mutex_);
    cut = std::exchange(cut_attach_, std::nullopt);
    for (const v1::ObserveResponse& response :
         Beginning(open.open().observation().start(), after)) {
      show(response);
    }
    while (const std::optional<v1::ObserveResponse> batch =
               NextBatch(open.open().observation(), after)) {
      show(*batch);
    }
  }
  const std::string child = IdOf(open.open().child());
  int64_t taken = 0;
  for (;;) {
    {
      ipc::MutexLock lock(mutex_);
      while (!attach_reads_ && !going_ && !context->IsCancelled()) {
        changed_.WaitUntil(mutex_, steady_clock::now() + milliseconds(10));
      }
    }
    v1::AttachRequest request;
    if (!stream->Read(&request)) {
      break;
    }
    grpc::Status done = Take(request).value_or(grpc::Status::OK);
    if (request.has_send() && done.ok()) {
      int64_t sequence = 0;
      done = Send(child, request.send(), sequence);
    }
    if (cut.has_value() && ++taken == cut->count) {
      return cut->status;
    }
    if (!done.ok() && open.open().stop_on_failure()) {
      return done;
    }
    v1::AttachResponse answer;
    if (!done.ok()) {
      answer.mutable_failed()->set_number(request.number());
      answer.mutable_failed()->mutable_status()->ParseFromString(done.error_details());
    } else {
      answer.mutable_ack()->set_through(request.number());
    }
    stream->Write(answer);
    ipc::MutexLock lock(mutex_);
    while (const std::optional<v1::ObserveResponse> batch =
               NextBatch(open.open().observation(), after)) {
      show(*batch);
    }
  }
  if (context->IsCancelled()) {
    return grpc::Status::CANCELLED;
  }
  v1::ObserveResponse fin;
  {
    ipc::MutexLock lock(mutex_);
    *fin.mutable_fin()->mutable_cursor() = CursorAt(after);
  }
  fin.mutable_fin()->set_reason(v1::Fin::REASON_HALF_CLOSED);
  show(fin);
  return grpc::Status::OK;
}

}  // namespace deka
