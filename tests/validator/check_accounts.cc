#include <algorithm>
#include <functional>
#include <map>
#include <optional>

#include "fmt/format.h"
#include "tests/validator/checks.h"

namespace deka::validator {
namespace {

// The agent reads on so long after it has ended its side of a channel; what a child writes later
// may stay unread. Somewhat less, for what passes before an event has its time.
constexpr double kDrainSeconds = 1.9;

// What the child says of one event.
struct Said {
  size_t record;
  const v1::Event* event;
  bool surely;
  bool by_another;  // a process that the child has forked
};

// Events of one sort that are known, in their order, beside what the child says of the same.
// Between two of them as many may be missing as there are child_sequences that nobody was shown.
// Of an event that was shown cut, several of what the child says may be the same: each is taken to
// be the first that may be, which leaves the others the most room.
class SideBySide {
 public:
  struct Known {
    const v1::Event* event;
    size_t record;
    size_t place_max;        // how many of this sort stand before it, at most
    int64_t unknown_before;  // child_sequences since the known event of this sort before it
  };

  SideBySide(const ChildFacts& child, const Facts& facts,
             const std::function<bool(const v1::Event&)>& is_of_this_sort) {
    for (size_t i = 1; i < child.sequences.size(); ++i) {
      const int64_t sequence = child.sequences[i];
      if (sequence == 0) {
        ++unknown_;
        continue;
      }
      const EventFact& fact = facts.events()[static_cast<size_t>(sequence)];
      if (!is_of_this_sort(*fact.event)) continue;
      unknown_before_ += unknown_;
      known_.push_back({fact.event, fact.record,
                        known_.size() + static_cast<size_t>(unknown_before_),
                        std::exchange(unknown_, 0)});
    }
  }

  const std::vector<Known>& known() const { return known_; }
  int64_t unknown_after() const { return unknown_; }

 private:
  std::vector<Known> known_;
  int64_t unknown_ = 0;
  int64_t unknown_before_ = 0;
};

// Behind the last of what the child says that `last` may be, the last one found, which was taken to
// be the one before `next`.
template <typename IsTheSame>
size_t LastNext(const SideBySide::Known* last, size_t next, const std::vector<Said>& said,
                IsTheSame is_the_same) {
  if (last == nullptr) return next;
  size_t end = std::min(said.size(), last->place_max + 1);
  while (end > next && !is_the_same(*last->event, said[end - 1])) --end;
  return std::max(end, next);
}

bool IsWhole(const v1::Event& event) {
  return static_cast<int64_t>(PayloadOf(event).size()) == WholePayloadBytes(event);
}

bool StartsWithPayload(const v1::Event& recorded, const v1::Event& said) {
  return PayloadOf(said).starts_with(PayloadOf(recorded)) &&
         WholePayloadBytes(recorded) == static_cast<int64_t>(PayloadOf(said).size());
}

bool IsCutOff(const v1::Event& recorded) {
  return recorded.has_error() && recorded.error().reason() == "FRAME_TRUNCATED";
}

bool IsTheSameFrame(const v1::Event& recorded, const Said& said) {
  if (recorded.has_from_child()) {
    return said.event->has_from_child() && StartsWithPayload(recorded, *said.event);
  }
  if (said.event->has_error()) {
    // Who was shown it may have asked for the first bytes only.
    return recorded.error().size_bytes() == said.event->error().size_bytes() &&
           said.event->raw().starts_with(recorded.raw());
  }
  return false;
}

// Pieces of a line, behind one another. Of some only the first bytes may have been shown.
class Pieces {
 public:
  void Add(const v1::Event& event) {
    pieces_.emplace_back(PayloadOf(event), bytes_);
    bytes_ += static_cast<size_t>(WholePayloadBytes(event));
  }
  void Clear() { *this = {}; }

  bool AreAll(std::string_view line) const { return line.size() == bytes_ && AreIn(line); }
  bool AreTheBeginningOf(std::string_view line) const {
    return line.size() >= bytes_ && AreIn(line);
  }
  bool AreTheEndOf(std::string_view line) const {
    return line.size() >= bytes_ && AreIn(line.substr(line.size() - bytes_));
  }

 private:
  bool AreIn(std::string_view line) const {
    return std::all_of(pieces_.begin(), pieces_.end(), [&](const auto& piece) {
      return line.substr(piece.second).starts_with(piece.first);
    });
  }

  std::vector<std::pair<std::string_view, size_t>> pieces_;  // and where they begin
  size_t bytes_ = 0;
};

class AccountCheck {
 public:
  AccountCheck(const ChildFacts& child, const Facts& facts, Verdict& verdict)
      : child_(child), facts_(facts), verdict_(verdict) {}
  void Run();

 private:
  void Take();
  void CheckFrames();
  void CheckOutput(v1::Output::Stream stream);
  void CheckReads();
  void CheckOrder();
  void CheckEnd();
  bool MayBeUnread() const;
  const v1::Event* EventAt(int64_t sequence) const { return facts_.EventAt(sequence); }

  const ChildFacts& child_;
  const Facts& facts_;
  Verdict& verdict_;

  std::vector<Said> frames_;
  std::map<int, std::vector<Said>> output_;
  std::vector<Said> reads_;
  const v1::Event* read_end_ = nullptr;
  size_t read_end_record_ = 0;
  const v1::ExitStatus* ends_ = nullptr;  // the child's own process
  size_t ends_record_ = 0;
  bool forked_ = false;
  std::map<size_t, const v1::Event*> events_;  // by the record of the account that tells of it
};

void AccountCheck::Run() {
  Take();
  CheckFrames();
  CheckOutput(v1::Output::STREAM_STDOUT);
  CheckOutput(v1::Output::STREAM_STDERR);
  CheckReads();
  CheckOrder();
  CheckEnd();
}

void AccountCheck::Take() {
  for (const size_t i : child_.account) {
    const Record& record = facts_.recording()[i];
    const auto* event = record.As<v1::Event>();
    switch (record.what) {
      case What::kWrote:
      case What::kMayHaveWritten: {
        if (event == nullptr) break;
        const Said said{i, event, record.what == What::kWrote, forked_};
        if (event->has_output()) {
          output_[event->output().stream()].push_back(said);
        } else {
          frames_.push_back(said);
        }
        break;
      }
      case What::kRead:
        if (event != nullptr) reads_.push_back({i, event, true, forked_});
        break;
      case What::kReadEnd:
        read_end_ = event;
        read_end_record_ = i;
        break;
      case What::kForked:
        forked_ = true;
        break;
      case What::kEnds:
        if (forked_) break;
        ends_ = record.As<v1::ExitStatus>();
        ends_record_ = i;
        break;
      default:
        break;
    }
  }
}

// The agent ended the conversation, and read on for as long as it does.
bool AccountCheck::MayBeUnread() const {
  const v1::Event* const disconnected = EventAt(child_.disconnected);
  if (disconnected == nullptr) return false;
  if (disconnected->disconnected().by() == v1::Disconnected::BY_FAILURE) return true;
  if (disconnected->disconnected().by() == v1::Disconnected::BY_CHILD) return false;
  const auto seconds = [](const v1::Event& event) {
    return static_cast<double>(event.time().seconds()) + event.time().nanos() * 1e-9;
  };
  // It did not end its side before it wrote the last message.
  const v1::Event* last = EventAt(child_.started);
  for (const int64_t sequence : child_.sequences) {
    const v1::Event* const event = EventAt(sequence);
    if (event != nullptr && event->has_to_child()) last = event;
  }
  return last == nullptr || seconds(*disconnected) - seconds(*last) > kDrainSeconds;
}

void AccountCheck::CheckFrames() {
  const SideBySide known(child_, facts_, [](const v1::Event& event) {
    return event.has_from_child() || event.has_error();
  });
  size_t next = 0;
  const SideBySide::Known* last = nullptr;
  for (const SideBySide::Known& each : known.known()) {
    verdict_.Exercise(Check::kWrittenByChild);
    const size_t end = std::min(frames_.size(), each.place_max + 1);
    size_t i = next;
    while (i < end && !IsTheSameFrame(*each.event, frames_[i]) &&
           !(IsCutOff(*each.event) && !frames_[i].surely)) {
      ++i;
    }
    if (i < end) {
      events_[frames_[i].record] = each.event;
      last = &each;
      next = i + 1;
      continue;
    }
    const auto elsewhere = std::find_if(frames_.begin(), frames_.end(), [&](const Said& said) {
      return IsTheSameFrame(*each.event, said);
    });
    std::vector<size_t> records{each.record};
    std::string sentence;
    if (elsewhere == frames_.end()) {
      sentence = "is nothing that it wrote";
      if (next < frames_.size()) records.push_back(frames_[next].record);
    } else {
      records.push_back(elsewhere->record);
      const bool again = elsewhere < frames_.begin() + static_cast<ptrdiff_t>(next);
      sentence = again ? "was written before what is recorded before it"
                       : "was written after something that is not recorded before it";
      if (!again) next = static_cast<size_t>(elsewhere - frames_.begin()) + 1;
    }
    verdict_.Violate(Check::kWrittenByChild,
                     fmt::format("{} {}", NameOf(*each.event, facts_), sentence),
                     std::move(records));
  }
  if (child_.closed == 0 || MayBeUnread()) return;
  next = LastNext(last, next, frames_, IsTheSameFrame);
  // What is left was never recorded: no more than is unknown.
  const int64_t left = std::count_if(frames_.begin() + static_cast<ptrdiff_t>(next), frames_.end(),
                                     [](const Said& said) { return said.surely; });
  if (left <= known.unknown_after()) return;
  const auto first = std::find_if(frames_.begin() + static_cast<ptrdiff_t>(next), frames_.end(),
                                  [](const Said& said) { return said.surely; });
  verdict_.Violate(first->by_another ? Check::kStillHeld : Check::kLastWords,
                   fmt::format("{} frames that {} wrote at last are not recorded, and {} of its "
                               "events are unknown",
                               left, NameOf(child_), known.unknown_after()),
                   {first->record});
}

void AccountCheck::CheckOutput(v1::Output::Stream stream) {
  const std::vector<Said>& lines = output_[stream];
  // Of output that nobody was shown all of, only the order is looked at.
  const bool complete = child_.complete();
  size_t next = 0;
  Pieces pieces;  // of a line that is to be continued
  int64_t unknown = 0;
  bool torn = false;  // a piece before is not known
  for (size_t number = 1; number < child_.sequences.size(); ++number) {
    const int64_t sequence = child_.sequences[number];
    if (sequence == 0) {
      ++unknown;
      torn = true;
      pieces.Clear();
      continue;
    }
    const EventFact& fact = facts_.events()[static_cast<size_t>(sequence)];
    const v1::Event& event = *fact.event;
    if (!event.has_output() || event.output().stream() != stream) continue;
    pieces.Add(event);
    if (event.output().partial()) continue;
    const Pieces line = std::exchange(pieces, {});
    if (std::exchange(torn, false) && !complete) {
      // It may be the end of a longer one.
      const auto found =
          std::find_if(lines.begin() + static_cast<ptrdiff_t>(next), lines.end(),
                       [&](const Said& said) { return line.AreTheEndOf(PayloadOf(*said.event)); });
      if (found != lines.end()) {
        next = static_cast<size_t>(found - lines.begin()) + 1;
        unknown = 0;
        continue;
      }
    }
    unknown = 0;
    verdict_.Exercise(Check::kOutputByChild);
    if (next < lines.size() && line.AreAll(PayloadOf(*lines[next].event))) {
      ++next;
      continue;
    }
    // Part of the last line, if it ended while it wrote it.
    if (next < lines.size() && !lines[next].surely && event.output().unterminated() &&
        line.AreTheBeginningOf(PayloadOf(*lines[next].event))) {
      ++next;
      continue;
    }
    verdict_.Violate(Check::kOutputByChild,
                     fmt::format("{} is not the line that it printed", NameOf(event, facts_)),
                     next < lines.size() ? std::vector<size_t>{fact.record, lines[next].record}
                                         : std::vector<size_t>{fact.record});
    return;
  }
  const int64_t left = std::count_if(lines.begin() + static_cast<ptrdiff_t>(next), lines.end(),
                                     [](const Said& said) { return said.surely; });
  if (child_.closed == 0 || left <= unknown) return;
  verdict_.Violate(
      Check::kLastOutput,
      fmt::format("{} lines that {} printed at last are not recorded", left, NameOf(child_)),
      {lines[next].record});
}

void AccountCheck::CheckReads() {
  const SideBySide known(child_, facts_,
                         [](const v1::Event& event) { return event.has_to_child(); });
  const auto is_read = [](const v1::Event& event, const Said& said) {
    return StartsWithPayload(event, *said.event);
  };
  size_t next = 0;
  int64_t unknown_after = known.unknown_after();
  const SideBySide::Known* last = nullptr;
  for (const SideBySide::Known& each : known.known()) {
    const size_t end = std::min(reads_.size(), each.place_max + 1);
    size_t i = next;
    while (i < end && !is_read(*each.event, reads_[i])) ++i;
    if (i < end) {
      verdict_.Exercise(Check::kReadByChild);
      if (last != nullptr &&
          last->event->to_child().sender().client() != each.event->to_child().sender().client()) {
        verdict_.Exercise(Check::kFramesWhole);
      }
      if (IsWhole(*each.event)) events_[reads_[i].record] = each.event;
      last = &each;
      next = i + 1;
      continue;
    }
    const auto elsewhere = std::find_if(reads_.begin(), reads_.end(), [&](const Said& said) {
      return IsWhole(*each.event) && !events_.contains(said.record) && is_read(*each.event, said);
    });
    if (elsewhere == reads_.end() && end == reads_.size() && read_end_ == nullptr) {
      // It ended, or closed its end, before it read this, and what came later neither.
      unknown_after = each.unknown_before;
      break;
    }
    std::vector<size_t> records{each.record};
    if (elsewhere != reads_.end()) {
      records.push_back(elsewhere->record);
      verdict_.Violate(Check::kFramesWhole,
                       fmt::format("{} was read in another order than it was written",
                                   NameOf(*each.event, facts_)),
                       std::move(records));
    } else {
      if (next < reads_.size()) records.push_back(reads_[next].record);
      verdict_.Violate(Check::kReadByChild,
                       fmt::format("{} is not what the child read", NameOf(*each.event, facts_)),
                       std::move(records));
    }
    return;
  }
  if (child_.closed == 0) return;
  next = LastNext(last, next, reads_, is_read);
  const auto left = static_cast<int64_t>(reads_.size() - next);
  if (left > unknown_after) {
    verdict_.Violate(
        Check::kReadByChild,
        fmt::format("{} has read {} messages that no event tells", NameOf(child_), left),
        {reads_[next].record});
  }
  // The beginning of a frame that was never finished.
  if (read_end_ == nullptr || !child_.complete()) return;
  int64_t written = 0;
  for (const int64_t sequence : child_.sequences) {
    const v1::Event* const event = EventAt(sequence);
    if (event != nullptr && event->has_undelivered()) {
      written += event->undelivered().written_bytes();
    }
  }
  if (written != static_cast<int64_t>(read_end_->raw().size())) {
    verdict_.Violate(Check::kAccepted,
                     fmt::format("{} has read {} bytes behind the last message, and {} are told as "
                                 "written of what is undelivered",
                                 NameOf(child_), read_end_->raw().size(), written),
                     {read_end_record_});
  }
}

// What a child wrote after it had read a message, or had got a signal, was recorded after that.
void AccountCheck::CheckOrder() {
  std::map<int, std::vector<int64_t>> signalled;  // sequences, by signal
  for (const int64_t sequence : child_.sequences) {
    const v1::Event* const event = EventAt(sequence);
    if (event != nullptr && event->has_signalled()) {
      signalled[event->signalled().signal()].push_back(sequence);
    }
  }
  std::map<int, size_t> got;
  const v1::Event* question = nullptr;
  std::optional<int64_t> signal;  // sequence of its event
  size_t question_record = 0, signal_record = 0;
  for (const size_t i : child_.account) {
    const Record& record = facts_.recording()[i];
    if (const auto* got_signal = record.As<v1::Signalled>();
        got_signal != nullptr && child_.unknown == 0) {
      const size_t count = ++got[got_signal->signal()];
      const std::vector<int64_t>& sequences = signalled[got_signal->signal()];
      verdict_.Exercise(Check::kSignalledFirst);
      if (count > sequences.size()) {
        verdict_.Violate(Check::kSignalledFirst,
                         fmt::format("{} got signal {} {} times, and {} are recorded",
                                     NameOf(child_), got_signal->signal(), count, sequences.size()),
                         {i});
      } else {
        signal = std::max(signal.value_or(0), sequences[count - 1]);
        signal_record = i;
      }
    }
    const auto found = events_.find(i);
    if (found == events_.end()) continue;
    if (record.what == What::kRead) {
      question = found->second;
      question_record = i;
      continue;
    }
    const v1::Event& event = *found->second;
    if (question != nullptr) {
      verdict_.Exercise(Check::kAnswerAfterQuestion);
      if (event.sequence() < question->sequence()) {
        verdict_.Violate(Check::kAnswerAfterQuestion,
                         fmt::format("{} was written after {} had been read, and is recorded "
                                     "before it",
                                     NameOf(event, facts_), NameOf(*question, facts_)),
                         {question_record, i});
        return;
      }
    }
    if (signal.has_value() && event.sequence() < *signal) {
      verdict_.Violate(Check::kSignalledFirst,
                       fmt::format("{} was written after a signal had come, and is recorded before "
                                   "it, sequence {}",
                                   NameOf(event, facts_), *signal),
                       {signal_record, i});
      return;
    }
  }
}

void AccountCheck::CheckEnd() {
  const v1::Event* const exited = EventAt(child_.exited);
  if (exited == nullptr) return;
  const v1::ExitStatus& status = exited->exited().status();
  if (ends_ != nullptr && ends_->result_case() == status.result_case() &&
      ends_->code() == status.code() && ends_->signal() == status.signal()) {
    verdict_.Exercise(Check::kOwnEnd);
    return;
  }
  const size_t record = facts_.events()[static_cast<size_t>(child_.exited)].record;
  if (!status.has_signal()) {
    if (ends_ == nullptr) return;
    verdict_.Violate(Check::kOwnEnd,
                     fmt::format("{} is told to have ended with {}, and says otherwise",
                                 NameOf(child_), status.ShortDebugString()),
                     {ends_record_, record});
    return;
  }
  // A signal of somebody else's ended it.
  if (child_.unknown != 0) return;
  verdict_.Exercise(Check::kSignalledFirst);
  const bool told =
      std::any_of(child_.sequences.begin(), child_.sequences.end(), [&](int64_t sequence) {
        const v1::Event* const event = EventAt(sequence);
        return event != nullptr && event->has_signalled() && sequence < child_.exited &&
               event->signalled().signal() == status.signal();
      });
  if (told) return;
  verdict_.Violate(Check::kSignalledFirst,
                   fmt::format("signal {} ended {}, and no `signalled` stands before it",
                               status.signal(), NameOf(child_)),
                   {record});
}

}  // namespace

void CheckAccounts(const Facts& facts, Verdict& verdict) {
  for (const ChildFacts& child : facts.children()) {
    if (!child.account.empty()) AccountCheck(child, facts, verdict).Run();
  }
}

}  // namespace deka::validator
