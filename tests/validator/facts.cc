#include "tests/validator/facts.h"

#include <algorithm>

#include "google/rpc/error_details.pb.h"

namespace deka::validator {
namespace {

constexpr uint32_t kToChildBit = 1u << 31;
// No history has more.
constexpr size_t kEventsMax = 10'000'000;

std::string WithoutLineBreaks(std::string json) {
  std::replace_if(
      json.begin(), json.end(), [](char c) { return c == '\n' || c == '\r'; }, ' ');
  return json;
}

}  // namespace

std::string_view PayloadOf(const v1::Event& event) {
  switch (event.payload_case()) {
    case v1::Event::kText:
      return event.text();
    case v1::Event::kJson:
      return event.json();
    case v1::Event::kRaw:
      return event.raw();
    case v1::Event::PAYLOAD_NOT_SET:
      return {};
  }
  return {};
}

int64_t WholePayloadBytes(const v1::Event& event) {
  switch (event.kind_case()) {
    case v1::Event::kFromChild:
      return event.from_child().size_bytes();
    case v1::Event::kToChild:
      return event.to_child().size_bytes();
    case v1::Event::kOutput:
      return event.output().size_bytes();
    default:
      return static_cast<int64_t>(PayloadOf(event).size());
  }
}

uint32_t KindBit(const v1::Event& event) {
  switch (event.kind_case()) {
    case v1::Event::kFromChild:
      return 1u << v1::EVENT_KIND_MESSAGE;
    case v1::Event::kToChild:
      return kToChildBit;
    case v1::Event::kOutput:
      return 1u << v1::EVENT_KIND_OUTPUT;
    case v1::Event::kError:
      return 1u << v1::EVENT_KIND_ERROR;
    case v1::Event::kUndelivered:
      return 1u << v1::EVENT_KIND_UNDELIVERED;
    case v1::Event::kStarted:
      return 1u << v1::EVENT_KIND_STARTED;
    case v1::Event::kSignalled:
      return 1u << v1::EVENT_KIND_SIGNALLED;
    case v1::Event::kDisconnected:
      return 1u << v1::EVENT_KIND_DISCONNECTED;
    case v1::Event::kExited:
      return 1u << v1::EVENT_KIND_EXITED;
    case v1::Event::kClosed:
      return 1u << v1::EVENT_KIND_CLOSED;
    case v1::Event::KIND_NOT_SET:
      return 0;
  }
  return 0;
}

uint32_t KindBits(const v1::Observation& observation) {
  uint32_t bits = 0;
  for (const int kind : observation.kinds()) bits |= 1u << kind;
  if (bits == 0) bits = ~0u & ~kToChildBit;
  const uint32_t from_child_bit = 1u << v1::EVENT_KIND_MESSAGE;
  if ((bits & from_child_bit) == 0) return bits;
  if (observation.direction() != v1::DIRECTION_FROM_CHILD) bits |= kToChildBit;
  if (observation.direction() == v1::DIRECTION_TO_CHILD) bits &= ~from_child_bit;
  return bits;
}

std::string ReasonOf(const google::rpc::Status& status) {
  for (const google::protobuf::Any& detail : status.details()) {
    google::rpc::ErrorInfo info;
    if (detail.UnpackTo(&info)) return info.reason();
  }
  // A call that is ended in the middle of a write has no room for details.
  const size_t end = status.message().find(':');
  const std::string reason = status.message().substr(0, end);
  return reason == "STALLED" ? reason : "";
}

Facts::Facts(const Recording& recording) : recording_(recording) {
  std::vector<std::vector<size_t>> calls;
  for (size_t i = 0; i < recording.size(); ++i) {
    const Record& record = recording[i];
    if (record.what == What::kLimits) {
      if (const auto* limits = record.As<v1::AgentLimits>()) limits_ = *limits;
    }
    stopping_ |= record.what == What::kStopping;
    if (record.call <= 0) continue;
    if (calls.size() < static_cast<size_t>(record.call)) {
      calls.resize(static_cast<size_t>(record.call));
    }
    calls[static_cast<size_t>(record.call) - 1].push_back(i);
  }
  for (const std::vector<size_t>& records : calls) {
    if (!records.empty()) TakeCall(records);
  }
  // Now that all names are known.
  for (const std::vector<size_t>& records : calls) {
    if (records.empty()) continue;
    TakeSend(records);
    TakeAttach(records);
  }
  for (size_t i = 0; i < recording.size(); ++i) {
    if (recording[i].call != 0 || recording[i].what < What::kWrote) continue;
    children_[static_cast<size_t>(ChildOf(recording[i].party))].account.push_back(i);
  }
  Finish();
}

void Facts::TakeCall(const std::vector<size_t>& records) {
  const Record& first = recording_[records[0]];
  if (const auto* request = first.As<v1::ForkChildRequest>()) {
    Fork fork{.request = *request};
    fork.asked = fork.answered = records[0];
    fork.asked_at = first.moment;
    for (const size_t i : records) {
      const Record& record = recording_[i];
      if (const auto* response = record.As<v1::ForkChildResponse>()) {
        fork.response = response;
        fork.answered = i;
        TakeDescription(response->child());
        Know(record.moment, response->cursor().sequence());
      }
      if (const auto* status = record.As<google::rpc::Status>()) {
        fork.refused = status->code() != 0 && !ReasonOf(*status).empty();
        fork.answered = i;
      }
    }
    forks_.push_back(std::move(fork));
    return;
  }
  for (const size_t i : records) {
    const Record& record = recording_[i];
    if (const auto* response = record.As<v1::DisconnectResponse>()) {
      Know(record.moment, response->sequence());
    }
    if (const auto* response = record.As<v1::ListChildrenResponse>()) {
      Know(record.moment, response->cursor().sequence());
      for (const v1::Child& child : response->children()) TakeDescription(child);
    }
  }
  TakeStream(records);
}

void Facts::TakeStream(const std::vector<size_t>& records) {
  const Record& first = recording_[records[0]];
  Stream stream{.party = first.party};
  if (const auto* request = first.As<v1::ObserveRequest>()) {
    stream.request = *request;
  } else if (const auto* attach = first.As<v1::AttachRequest>();
             attach != nullptr && attach->open().has_observation()) {
    stream.request.mutable_filter()->add_children(attach->open().child());
    *stream.request.mutable_observation() = attach->open().observation();
  } else {
    return;
  }
  stream.asked = stream.last = records[0];
  stream.asked_at = stream.last_at = first.moment;
  for (const size_t i : records) {
    const Record& record = recording_[i];
    if (record.what != What::kAnswered && record.what != What::kEnded) continue;
    stream.last = i;
    stream.last_at = record.moment;
    if (const auto* response = record.As<v1::ObserveResponse>()) {
      TakePiece(stream, i, *response);
    } else if (const auto* answer = record.As<v1::AttachResponse>()) {
      if (answer->has_observed()) TakePiece(stream, i, answer->observed());
    } else if (const auto* status = record.As<google::rpc::Status>()) {
      stream.status = status;
    }
  }
  streams_.push_back(std::move(stream));
}

void Facts::TakePiece(Stream& stream, size_t record, const v1::ObserveResponse& response) {
  const int64_t moment = recording_[record].moment;
  stream.pieces.push_back({record, &response});
  switch (response.response_case()) {
    case v1::ObserveResponse::kAttached:
      stream.attached = &response.attached();
      stream.attached_at = moment;
      Know(moment, response.attached().head());
      break;
    case v1::ObserveResponse::kSnapshot:
      for (const v1::Child& child : response.snapshot().children()) TakeDescription(child);
      break;
    case v1::ObserveResponse::kBatch:
      for (const v1::Event& event : response.batch().events()) TakeEvent(stream, record, event);
      break;
    case v1::ObserveResponse::kGap:
      Know(moment, response.gap().to_sequence());
      if (!response.gap().inexact()) {
        ChildFacts& child = children_[static_cast<size_t>(ChildOf(response.gap().child()))];
        child.newest_sequence = std::max(child.newest_sequence, response.gap().to_sequence());
      }
      break;
    case v1::ObserveResponse::kHeartbeat:
      Know(moment, response.heartbeat().cursor().sequence());
      break;
    case v1::ObserveResponse::kFin:
      Know(moment, response.fin().cursor().sequence());
      break;
    case v1::ObserveResponse::kSnapshotComplete:
    case v1::ObserveResponse::RESPONSE_NOT_SET:
      break;
  }
}

void Facts::TakeEvent(const Stream& stream, size_t record, const v1::Event& event) {
  if (event.sequence() <= 0) return;
  const auto sequence = static_cast<size_t>(event.sequence());
  if (sequence > kEventsMax) return;
  if (events_.size() <= sequence) events_.resize(sequence + 1);
  EventFact& fact = events_[sequence];
  if (fact.event == nullptr) {
    fact = {.event = &event, .record = record, .child = ChildOf(event.child())};
    fact.kind_bit = KindBit(event);
    if (event.has_started()) TakeDescription(event.started().child());
  } else if (fact.event->child() == event.child() &&
             fact.event->child_sequence() == event.child_sequence() &&
             PayloadOf(event).size() > PayloadOf(*fact.event).size()) {
    fact.event = &event;
    fact.record = record;
  }
  if (stream.attached != nullptr && event.sequence() <= stream.attached->head() &&
      event.sequence() > stream.attached->start().sequence()) {
    fact.in_log_at = std::max(fact.in_log_at, stream.asked_at);
  }
  Know(recording_[record].moment, event.sequence());
}

void Facts::TakeDescription(const v1::Child& child) {
  const std::string id = child.name().substr(child.name().rfind('/') + 1);
  const int number = ChildOf(id);
  ChildFacts& facts = children_[static_cast<size_t>(number)];
  facts.newest_sequence = std::max(facts.newest_sequence, child.last_sequence());
  if (facts.described) return;
  facts.described = true;
  facts.display_name = child.display_name();
  facts.labels = {child.labels().begin(), child.labels().end()};
  facts.limits = child.limits();
  if (!facts.display_name.empty()) by_display_name_.emplace(facts.display_name, number);
}

int Facts::ChildOf(std::string_view id) {
  const auto [entry, is_new] = by_id_.try_emplace(std::string(id), children_.size());
  if (is_new) children_.push_back({.id = entry->first});
  return entry->second;
}

int Facts::ChildNamed(std::string_view name) const {
  const size_t slash = name.rfind('/');
  const std::string id(slash == std::string_view::npos ? name : name.substr(slash + 1));
  if (const auto found = by_id_.find(id); found != by_id_.end()) return found->second;
  const auto found = by_display_name_.find(id);
  return found == by_display_name_.end() ? -1 : found->second;
}

void Facts::TakeSend(const std::vector<size_t>& records) {
  const Record& first = recording_[records[0]];
  if (const auto* request = first.As<v1::SignalChildRequest>()) {
    Signal signal{.child = ChildNamed(request->child()),
                  .number = request->signal(),
                  .client = request->client()};
    signal.asked = signal.answered = records[0];
    signal.asked_at = first.moment;
    for (const size_t i : records) {
      const auto* response = recording_[i].As<v1::SignalChildResponse>();
      if (response == nullptr) continue;
      signal.answered = i;
      signal.sequence = response->sequence();
      Know(recording_[i].moment, response->sequence());
    }
    signals_.push_back(std::move(signal));
    return;
  }
  const auto* request = first.As<v1::SendMessageRequest>();
  if (request == nullptr) return;
  Send send{.child = ChildNamed(request->child()),
            .json = WithoutLineBreaks(request->json()),
            .request_id = request->request_id(),
            .repeat = request->repeat(),
            .client = request->client()};
  send.asked = send.answered = records[0];
  send.asked_at = send.answered_at = first.moment;
  for (const size_t i : records) {
    const Record& record = recording_[i];
    if (const auto* response = record.As<v1::SendMessageResponse>()) {
      send.outcome = response->outcome() == v1::SEND_OUTCOME_WRITTEN ? Send::Outcome::kWritten
                                                                     : Send::Outcome::kAccepted;
      send.sequence = response->sequence();
      if (send.sequence > 0) Know(record.moment, send.sequence);
    } else if (const auto* status = record.As<google::rpc::Status>();
               status != nullptr && status->code() != 0) {
      TakeRefusal(*status, send);
    } else {
      continue;
    }
    send.answered = i;
    send.answered_at = record.moment;
  }
  sends_.push_back(std::move(send));
}

void Facts::TakeRefusal(const google::rpc::Status& status, Send& send) {
  send.reason = ReasonOf(status);
  send.outcome = send.reason.empty() || send.reason == "OUTCOME_UNKNOWN" ? Send::Outcome::kUnknown
                                                                         : Send::Outcome::kRefused;
}

void Facts::TakeAttach(const std::vector<size_t>& records) {
  const Record& first = recording_[records[0]];
  const auto* open = first.As<v1::AttachRequest>();
  if (open == nullptr || !open->has_open()) return;
  std::map<int64_t, Send> sends;  // by number
  int64_t through = 0;
  for (const size_t i : records) {
    const Record& record = recording_[i];
    if (const auto* request = record.As<v1::AttachRequest>(); request && request->has_send()) {
      Send send{.child = ChildNamed(open->open().child()),
                .json = WithoutLineBreaks(request->send().json()),
                .request_id = request->send().request_id(),
                .repeat = request->send().repeat(),
                .client = open->open().client(),
                .attach = first.call};
      send.asked = send.answered = i;
      send.asked_at = send.answered_at = record.moment;
      sends.emplace(request->number(), std::move(send));
    }
    const auto* response = record.As<v1::AttachResponse>();
    if (response == nullptr) continue;
    if (response->has_ack()) {
      for (auto send = sends.upper_bound(through);
           send != sends.end() && send->first <= response->ack().through(); ++send) {
        if (send->second.outcome != Send::Outcome::kUnknown || !send->second.reason.empty())
          continue;
        send->second.outcome = Send::Outcome::kWritten;
        send->second.answered = i;
        send->second.answered_at = record.moment;
      }
      through = std::max(through, response->ack().through());
    } else if (response->has_failed()) {
      const auto send = sends.find(response->failed().number());
      if (send == sends.end()) continue;
      TakeRefusal(response->failed().status(), send->second);
      send->second.answered = i;
      send->second.answered_at = record.moment;
    }
  }
  for (auto& [number, send] : sends) sends_.push_back(std::move(send));
}

void Facts::Finish() {
  for (size_t sequence = 1; sequence < events_.size(); ++sequence) {
    const EventFact& fact = events_[sequence];
    if (fact.event == nullptr) continue;
    ChildFacts& child = children_[static_cast<size_t>(fact.child)];
    const auto number = static_cast<int64_t>(sequence);
    child.newest_sequence = std::max(child.newest_sequence, number);
    const int64_t child_sequence = fact.event->child_sequence();
    if (child_sequence > 0 && child_sequence <= number) {
      if (child.sequences.size() <= static_cast<size_t>(child_sequence)) {
        child.sequences.resize(static_cast<size_t>(child_sequence) + 1);
      }
      int64_t& place = child.sequences[static_cast<size_t>(child_sequence)];
      if (place == 0) place = number;
    }
    const v1::Event& event = *fact.event;
    const auto take = [number](bool is, int64_t& which) {
      if (is && which == 0) which = number;
    };
    take(event.has_started(), child.started);
    take(event.has_disconnected(), child.disconnected);
    take(event.has_exited(), child.exited);
    take(event.has_closed(), child.closed);
  }
  for (ChildFacts& child : children_) {
    child.unknown = std::count(child.sequences.begin() + 1, child.sequences.end(), 0);
  }
  std::sort(known_.begin(), known_.end());
  int64_t largest = 0;
  for (auto& [moment, sequence] : known_) sequence = largest = std::max(largest, sequence);
}

int64_t Facts::KnownBefore(int64_t moment) const {
  const auto after = std::lower_bound(known_.begin(), known_.end(), std::pair(moment, int64_t{0}));
  return after == known_.begin() ? 0 : std::prev(after)->second;
}

}  // namespace deka::validator
