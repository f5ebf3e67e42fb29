#include "sdk/cpp/progress.h"

#include <algorithm>
#include <string_view>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "google/protobuf/util/time_util.h"

namespace deka {
namespace {

using google::protobuf::util::TimeUtil;

std::string IdOf(const std::string& resource_name) {
  return resource_name.substr(resource_name.rfind('/') + 1);
}

bool MeansAll(std::string_view name) { return name.ends_with("/-"); }

}  // namespace

bool HasEnd(const v1::Observation& observation) {
  return observation.events_max() > 0 || observation.has_duration() || observation.until_closed();
}

template <typename Callback, typename... Arguments>
void Progress::Tell(const Callback& callback, const Arguments&... arguments) const {
  if (callback && !stopped_) {
    callback(arguments...);
  }
}

Progress::Progress(v1::Observation observation, std::vector<std::string> children,
                   const Observer& observer, const std::atomic<bool>& stopped)
    : observation_(std::move(observation)),
      observer_(observer),
      stopped_(stopped),
      children_(std::move(children)) {
  pinned_ = children_.empty() || std::any_of(children_.begin(), children_.end(), MeansAll);
}

v1::Observation Progress::NextObservation(Clock::time_point now) const {
  v1::Observation next = observation_;
  if (const std::optional<v1::Cursor> place = cursor()) {
    *next.mutable_start()->mutable_after() = *place;
  }
  if (next.events_max() > 0) {
    next.set_events_max(next.events_max() - events_);
  }
  if (deadline_.has_value()) {
    const auto left = std::chrono::duration_cast<std::chrono::nanoseconds>(*deadline_ - now);
    *next.mutable_duration() = TimeUtil::NanosecondsToDuration(std::max<int64_t>(left.count(), 1));
  }
  return next;
}

std::optional<v1::Fin> Progress::Finished(Clock::time_point now) const {
  if (fin_.has_value()) {
    return fin_;
  }
  v1::Fin fin;
  if (observation_.events_max() > 0 && events_ >= observation_.events_max()) {
    fin.set_reason(v1::Fin::REASON_EVENTS_MAX);
  } else if (deadline_.has_value() && now >= *deadline_) {
    fin.set_reason(v1::Fin::REASON_DURATION);
  } else {
    return std::nullopt;
  }
  if (const std::optional<v1::Cursor> place = cursor()) {
    *fin.mutable_cursor() = *place;
  }
  return fin;
}

void Progress::Take(const v1::ObserveResponse& response, Clock::time_point now) {
  switch (response.response_case()) {
    case v1::ObserveResponse::kAttached:
      TakeAttached(response.attached(), now);
      break;
    case v1::ObserveResponse::kSnapshot:
      TakeSnapshot(response.snapshot());
      break;
    case v1::ObserveResponse::kSnapshotComplete:
      TakeSnapshotComplete();
      break;
    case v1::ObserveResponse::kBatch:
      for (const v1::Event& event : response.batch().events()) {
        if (stopped_) {
          return;
        }
        TakeEvent(event);
      }
      break;
    case v1::ObserveResponse::kGap:
      TakeGap(response.gap());
      break;
    case v1::ObserveResponse::kHeartbeat:
      MoveTo(response.heartbeat().cursor());
      Tell(observer_.on_heartbeat, response.heartbeat());
      break;
    case v1::ObserveResponse::kFin:
      MoveTo(response.fin().cursor());
      fin_ = response.fin();
      break;
    case v1::ObserveResponse::RESPONSE_NOT_SET:
      // A kind that a newer agent has.
      break;
  }
}

void Progress::TakeAttached(const v1::Attached& attached, Clock::time_point now) {
  const bool replaced =
      attached.epoch() == attached_.epoch() && attached.incarnation() > attached_.incarnation();
  attached_ = attached;
  snapshot_.clear();
  const std::optional<v1::Cursor> place = cursor();
  if (place.has_value() && place->epoch() != attached.epoch()) {
    // Another life of the log: other children, other numbers.
    known_.clear();
    first_stream_ = true;
    inexact_to_ = 0;
  }
  if (!place.has_value()) {
    MoveTo(attached.start());
    if (observation_.has_duration()) {
      deadline_ =
          now + std::chrono::nanoseconds(TimeUtil::DurationToNanoseconds(observation_.duration()));
    }
  }
  Tell(observer_.on_attached, attached);
  if (place.has_value()) {
    if (replaced) {
      Tell(observer_.on_replaced, attached.incarnation());
    }
    Tell(observer_.on_resumed, *place);
  }
}

void Progress::TakeSnapshot(const v1::Snapshot& snapshot) {
  // The snapshot shows the children at the head. If the stream begins there, what a child has had
  // before is not this observer's business; if earlier events are still to come, their numbers are
  // not known yet.
  const bool begins_at_head = attached_.start().sequence() >= attached_.head();
  for (const v1::Child& child : snapshot.children()) {
    if (!pinned_) {
      snapshot_.push_back(child.name());
    }
    if (first_stream_ && begins_at_head) {
      Know(IdOf(child.name()), child.last_child_sequence(), child.last_sequence(),
           /*missed=*/false);
    }
    Tell(observer_.on_child, child);
  }
}

void Progress::TakeSnapshotComplete() {
  if (!pinned_ && !snapshot_.empty()) {
    children_ = std::move(snapshot_);
    pinned_ = true;
  }
  first_stream_ = false;
  Tell(observer_.on_snapshot_complete);
}

void Progress::TakeEvent(const v1::Event& event) {
  v1::Cursor place;
  place.set_agent(attached_.agent());
  place.set_epoch(attached_.epoch());
  place.set_sequence(event.sequence());
  MoveTo(place);
  // As the agent counts them, shown here or not.
  ++events_;
  const auto known = known_.find(event.child());
  if (known != known_.end() && known->second.missed &&
      event.child_sequence() <= known->second.child_sequence) {
    return;
  }
  if (event.has_closed()) {
    known_.erase(event.child());
  } else {
    Know(event.child(), event.child_sequence(), event.sequence(), /*missed=*/false);
  }
  Tell(observer_.on_event, event);
}

void Progress::TakeGap(const v1::Gap& gap) {
  if (gap.reason() == v1::Gap::REASON_OTHER_EPOCH) {
    // Told once: from here on the place is one of this epoch.
    MoveTo(attached_.start());
    Tell(observer_.on_gap, gap);
    return;
  }
  if (gap.inexact()) {
    if (gap.to_sequence() > inexact_to_) {
      inexact_to_ = gap.to_sequence();
      Tell(observer_.on_gap, gap);
    }
    return;
  }
  v1::Gap told = gap;
  if (const auto known = known_.find(gap.child()); known != known_.end()) {
    const int64_t last = known->second.child_sequence;
    if (gap.to_child_sequence() <= last) {
      return;
    }
    if (!gap.has_from_child_sequence() || gap.from_child_sequence() <= last) {
      told.set_from_child_sequence(last + 1);
    }
  }
  Know(gap.child(), gap.to_child_sequence(), gap.to_sequence(), /*missed=*/true);
  Tell(observer_.on_gap, told);
}

void Progress::Know(const std::string& child, int64_t child_sequence, int64_t sequence,
                    bool missed) {
  known_[child] = {child_sequence, sequence, missed};
  if (known_.size() <= kKnownMax) {
    return;
  }
  std::vector<int64_t> sequences;
  sequences.reserve(known_.size());
  for (const auto& [id, known] : known_) {
    sequences.push_back(known.sequence);
  }
  const auto middle = sequences.begin() + kKnownMax / 2;
  std::nth_element(sequences.begin(), middle, sequences.end());
  absl::erase_if(known_, [&](const auto& entry) { return entry.second.sequence < *middle; });
}

void Progress::MoveTo(const v1::Cursor& cursor) {
  ipc::MutexLock lock(mutex_);
  cursor_ = cursor;
}

std::optional<v1::Cursor> Progress::cursor() const {
  ipc::MutexLock lock(mutex_);
  return cursor_;
}

}  // namespace deka
