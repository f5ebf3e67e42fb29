#include <algorithm>
#include <utility>

#include "fmt/format.h"
#include "tests/validator/checks.h"

namespace deka::validator {
namespace {

bool IsByChild(const v1::Event& event) { return event.has_from_child() || event.has_error(); }

bool HasAccountOfAnother(const ChildFacts& child, const Facts& facts) {
  return std::any_of(child.account.begin(), child.account.end(), [&](size_t record) {
    return facts.recording()[record].what == What::kForked;
  });
}

// child_sequence: unique, and in the order of sequence.
void CheckChildNumbers(const Facts& facts, Verdict& verdict) {
  std::vector<std::pair<int64_t, int64_t>> newest(facts.children().size());
  for (int64_t sequence = 1; sequence <= facts.head(); ++sequence) {
    const EventFact& fact = facts.events()[static_cast<size_t>(sequence)];
    if (fact.event == nullptr) continue;
    verdict.Exercise(Check::kChildSequenceDense);
    auto& [last, last_child] = newest[static_cast<size_t>(fact.child)];
    const int64_t child_sequence = fact.event->child_sequence();
    // Between two events of a child lie at least as many numbers of the agent as of the child.
    if (child_sequence <= last_child || child_sequence - last_child > sequence - last) {
      std::vector<size_t> records{fact.record};
      if (last != 0) records.push_back(facts.events()[static_cast<size_t>(last)].record);
      verdict.Violate(Check::kChildSequenceDense,
                      fmt::format("{} cannot have child_sequence {}: sequence {} before it had {}",
                                  NameOf(*fact.event, facts), child_sequence, last, last_child),
                      std::move(records));
    }
    last = sequence;
    last_child = std::max(last_child, child_sequence);
  }
}

// All numbers together: as many events as the largest sequence says.
void CheckAgentNumbers(const Facts& facts, Verdict& verdict) {
  int64_t events = 0;
  bool complete = true;
  for (const ChildFacts& child : facts.children()) {
    events += static_cast<int64_t>(child.sequences.size()) - 1;
    complete &= child.closed != 0;
  }
  if (complete) verdict.Exercise(Check::kSequenceDense, facts.head());
  if (complete ? events == facts.head() : events <= facts.head()) return;
  verdict.Violate(
      Check::kSequenceDense,
      fmt::format("the children have {} events by their child_sequence, and the largest sequence "
                  "is {}",
                  events, facts.head()),
      {});
}

void CheckTimes(const Facts& facts, Verdict& verdict) {
  const EventFact* before = nullptr;
  const auto time = [](const EventFact& fact) {
    return std::pair(fact.event->time().seconds(), fact.event->time().nanos());
  };
  for (const EventFact& fact : facts.events()) {
    if (fact.event == nullptr) continue;
    verdict.Exercise(Check::kTime);
    if (before != nullptr && time(fact) < time(*before)) {
      verdict.Violate(Check::kTime,
                      fmt::format("{} has an earlier time than {}", NameOf(*fact.event, facts),
                                  NameOf(*before->event, facts)),
                      {before->record, fact.record});
    }
    before = &fact;
  }
}

void CheckKinds(const ChildFacts& child, const Facts& facts, Verdict& verdict) {
  const auto at = [&](int64_t sequence) -> const EventFact& {
    return facts.events()[static_cast<size_t>(sequence)];
  };
  const bool held = child.exited != 0 && at(child.exited).event->exited().status().still_held();
  bool message = false, output = false, after_exited = false;
  for (size_t number = 1; number < child.sequences.size(); ++number) {
    const int64_t sequence = child.sequences[number];
    if (sequence == 0) continue;
    const EventFact& fact = at(sequence);
    const v1::Event& event = *fact.event;
    message |= IsByChild(event);
    output |= event.has_output();
    if (number == 1) verdict.Exercise(Check::kStartedFirst);
    if (event.has_started() != (number == 1)) {
      verdict.Violate(Check::kStartedFirst,
                      fmt::format("event {} of {} is {}", number, NameOf(child),
                                  number == 1 ? "not its `started`" : "another `started`"),
                      {fact.record});
    }
    for (const int64_t once : {child.disconnected, child.exited, child.closed}) {
      if (once == 0 || once == sequence || at(once).kind_bit != fact.kind_bit) continue;
      verdict.Violate(once == child.closed ? Check::kClosedLast : Check::kLastWords,
                      fmt::format("{} happens to it a second time", NameOf(event, facts)),
                      {at(once).record, fact.record});
    }
    if (child.disconnected != 0 && sequence > child.disconnected && IsByChild(event)) {
      verdict.Violate(Check::kLastWords,
                      fmt::format("{} is recorded after `disconnected`", NameOf(event, facts)),
                      {at(child.disconnected).record, fact.record});
    } else if (child.exited != 0 && sequence > child.exited &&
               (IsByChild(event) || event.has_output() || event.has_disconnected())) {
      after_exited = true;
      if (held) continue;
      const Check check = HasAccountOfAnother(child, facts) ? Check::kStillHeld
                          : event.has_output()              ? Check::kLastOutput
                                                            : Check::kLastWords;
      verdict.Violate(check,
                      fmt::format("{} is recorded after `exited`, which does not say `still_held`",
                                  NameOf(event, facts)),
                      {at(child.exited).record, fact.record});
    }
  }
  if (child.exited != 0 && message) verdict.Exercise(Check::kLastWords);
  if (child.exited != 0 && output) verdict.Exercise(Check::kLastOutput);
  if (held && after_exited) verdict.Exercise(Check::kStillHeld);
  if (child.closed == 0) return;
  verdict.Exercise(Check::kClosedLast);
  const auto closed_number = static_cast<size_t>(at(child.closed).event->child_sequence());
  if (child.newest_sequence > child.closed || child.sequences.size() > closed_number + 1) {
    verdict.Violate(Check::kClosedLast,
                    fmt::format("{} has an event after `closed`, sequence {}", NameOf(child),
                                child.newest_sequence),
                    {at(child.closed).record});
  }
}

}  // namespace

std::string NameOf(const ChildFacts& child) {
  return fmt::format("child {}", child.display_name.empty() ? child.id : child.display_name);
}

std::string NameOf(const v1::Event& event, const Facts& facts) {
  const auto* field = v1::Event::descriptor()->FindFieldByNumber(event.kind_case());
  const int child = facts.ChildNamed(event.child());
  return fmt::format(
      "{} {} (sequence {}) of {}", field == nullptr ? "event" : field->name(),
      event.child_sequence(), event.sequence(),
      child < 0 ? event.child() : NameOf(facts.children()[static_cast<size_t>(child)]));
}

void CheckEvents(const Facts& facts, Verdict& verdict) {
  CheckChildNumbers(facts, verdict);
  CheckAgentNumbers(facts, verdict);
  CheckTimes(facts, verdict);
  for (const ChildFacts& child : facts.children()) CheckKinds(child, facts, verdict);
}

}  // namespace deka::validator
