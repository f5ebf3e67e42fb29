#include "tests/validator/plan.h"

#include <csignal>

#include "fmt/format.h"

namespace deka::validator {
namespace {

using Role = ChildPlan::Role;
using End = ChildPlan::End;
using Kind = Step::Kind;
using Start = ObservationPlan::Start;

// Of a log that turns over, and of one that holds everything.
constexpr int kTinyLogBytes = 72 << 10;
constexpr int kWholeLogBytes = 16 << 20;
// Of each, and of all together.
constexpr int kCrowdedLogBytes = 1 << 20;
constexpr int kMessageBytes = 256 << 10;
constexpr int kDeafMessageBytes = 32 << 10;
constexpr int kQueueOverheadBytes = 4 << 10;

class Planner {
 public:
  Planner(uint64_t seed, Size size) : dice_(seed), full_(size == Size::kFull) {}

  Plan Make() {
    // What lasts longer than all the rest: an exit that waits for a grandchild.
    held_ = !full_ || dice_.OneIn(4);
    crowded_ = full_ && dice_.OneIn(8);
    MakeChildren();
    MakeConfig();
    const int senders = dice_.Between(3, full_ ? 4 : 3);
    for (int i = 0; i < senders; ++i) MakeSender();
    const int observers = dice_.Between(3, full_ ? 5 : 3);  // and one that sees to the end
    for (int i = 0; i < observers; ++i) MakeObserver(i);
    plan_.events_min = full_ ? 10'000 : 0;
    plan_.lingers = full_ && dice_.OneIn(10);
    return std::move(plan_);
  }

 private:
  void MakeConfig();
  void MakeChildren();
  ChildPlan& AddChild(Role role, End end);
  void Ends(ChildPlan& child);
  void MakeSender();
  Step MakeStep();
  void MakeObserver(int number);
  ObservationPlan MakeObservation(bool first);
  std::vector<int> ChildrenOf(Role role) const;
  int ChildOf(Role role) { return Any(ChildrenOf(role)); }
  int Any(const std::vector<int>& of) {
    return of[static_cast<size_t>(dice_.Below(static_cast<int>(of.size())))];
  }
  int WholeLogBytes() const { return crowded_ ? kCrowdedLogBytes : kWholeLogBytes; }

  Dice dice_;
  const bool full_;
  bool held_ = false;
  bool crowded_ = false;  // all logs together have less room than they would take
  Plan plan_;
};

void Planner::MakeConfig() {
  v1::AgentConfig& config = plan_.config;
  config.set_agent_id("history");
  v1::AgentLimits& limits = *config.mutable_limits();
  limits.set_log_events_max(full_ ? dice_.Of({256, 2048, 65536, 65536}) : 24);
  limits.set_ended_children_max(full_ ? dice_.Of({1, 2, 1024, 1024}) : 2);
  if (!crowded_) return;
  limits.mutable_child()->set_message_bytes_max(kMessageBytes);
  limits.mutable_child()->set_log_bytes_max(kCrowdedLogBytes);
  limits.set_logs_bytes_max(kCrowdedLogBytes);
}

ChildPlan& Planner::AddChild(Role role, End end) {
  ChildPlan& child = plan_.children.emplace_back();
  child.role = role;
  child.end = end;
  child.seed = dice_.Seed();
  const char* const names[] = {"server", "flood", "deaf", "holder", "mute"};
  const std::string name = names[static_cast<int>(role)];
  child.spec.set_display_name(fmt::format("{}-{}", name, plan_.children.size()));
  (*child.spec.mutable_labels())["role"] = name;
  (*child.spec.mutable_labels())["half"] = plan_.children.size() % 2 == 0 ? "even" : "odd";
  child.spec.set_dialect(dice_.Of({v1::DIALECT_DEKA, v1::DIALECT_NODE}));
  v1::ChildLimits& limits = *child.spec.mutable_limits();
  const bool tiny = dice_.OneIn(3);
  limits.set_message_bytes_max(tiny ? 4096 : kMessageBytes);
  limits.set_queue_bytes_max(tiny ? 64 << 10 : 1 << 20);
  limits.set_log_bytes_max(tiny ? kTinyLogBytes : WholeLogBytes());
  return child;
}

void Planner::Ends(ChildPlan& child) {
  switch (dice_.Below(5)) {
    case 0:
      child.steps.push_back("half");
      [[fallthrough]];
    case 1:
      child.steps.push_back(fmt::format("exit:{}", dice_.Between(0, 200)));
      return;
    case 2:
      child.steps.push_back(fmt::format("kill:{}", dice_.Of({SIGKILL, SIGABRT, SIGTERM})));
      return;
    case 3:
      child.steps.insert(child.steps.end(),
                         {"close", full_ ? "print:20" : "print:2", "unterminated", "exit:3"});
      return;
    default:
      return;
  }
}

void Planner::MakeChildren() {
  const int floods = full_ ? dice_.Between(3, 4) : 2;
  const int messages = full_ ? 9'600 / floods : 10;
  for (int i = 0; i < floods; ++i) {
    ChildPlan& child = AddChild(Role::kFlood, dice_.Of({End::kFlush, End::kNow}));
    child.late = i == 2;
    // Each part begins when a message comes.
    const int parts = dice_.Between(1, 4);
    for (int part = 0; part < parts; ++part) {
      child.steps.push_back("serve:3:1");
      child.steps.push_back(fmt::format("write:{}:{}:{}", messages / parts,
                                        dice_.Of({1, 10, 200, 2000}),
                                        full_ ? dice_.Of({20, 60, 200}) : 10));
      child.steps.push_back(fmt::format("bad:{}", dice_.Below(4)));
      child.steps.push_back(fmt::format("print:{}", dice_.Below(full_ ? 40 : 4)));
    }
    const int64_t bytes_max = child.spec.limits().message_bytes_max();
    if (full_ && dice_.OneIn(2))
      child.steps.push_back(fmt::format("too-large:{}", bytes_max + 100));
    if (full_ && bytes_max > 150'000) child.steps.push_back("big:150000");
    if (full_ && dice_.OneIn(3)) child.steps.push_back("long-line:150000");
    if (full_ || i > 0) {
      Ends(child);
    } else {
      child.steps.push_back("kill:9");
    }
  }
  const int servers = full_ ? dice_.Between(3, 4) : 2;
  for (int i = 0; i < servers; ++i) {
    ChildPlan& child = AddChild(
        Role::kServer, dice_.Of({End::kFlush, End::kNow, End::kTerminate, End::kKill, End::kStop}));
    if (i == 0) child.end = full_ ? End::kFlush : End::kStop;
    child.late = i == 3;
    child.steps.push_back(
        fmt::format("write:{}:10:{}", dice_.Between(1, full_ ? 100 : 5), full_ ? 50 : 10));
    child.steps.push_back(fmt::format("serve:{}", full_ ? dice_.Of({1, 10, 40}) : 6));
    Ends(child);
  }
  {
    ChildPlan& child =
        AddChild(Role::kDeaf, dice_.Of({End::kNow, End::kKill, End::kWake, End::kTerminate}));
    v1::ChildLimits& limits = *child.spec.mutable_limits();
    limits.set_message_bytes_max(kDeafMessageBytes);
    limits.set_queue_bytes_max(kDeafMessageBytes + kQueueOverheadBytes + dice_.Below(100'000));
    limits.set_log_bytes_max(WholeLogBytes());
    child.steps = {fmt::format("write:{}:5:50", dice_.Between(1, full_ ? 50 : 5)), "deaf"};
    if (child.end == End::kWake || dice_.OneIn(2)) child.steps.push_back("serve:1");
    Ends(child);
  }
  {
    ChildPlan& child = AddChild(Role::kHolder, held_ ? End::kRelease : End::kFlush);
    child.steps = {fmt::format("write:{}:5:50", dice_.Between(1, full_ ? 50 : 3)), "print:2",
                   fmt::format("hold:{}", dice_.Below(100)),
                   full_ ? "write:20:3:50" : "write:3:1:50", "print:2"};
    if (held_) child.steps.push_back("serve:5");
  }
  if (dice_.OneIn(2)) {
    ChildPlan& child = AddChild(Role::kMute, dice_.Of({End::kTerminate, End::kKill}));
    child.spec.set_no_channel(true);
    child.spec.clear_dialect();
    child.steps = {fmt::format("print:{}", dice_.Below(50)), "unterminated"};
    if (dice_.OneIn(2)) child.steps.push_back("deaf");
  }
  while (plan_.children.size() < 8) {
    ChildPlan& child = AddChild(Role::kServer, dice_.Of({End::kFlush, End::kStop}));
    child.steps = {"serve:2"};
    Ends(child);
  }
}

std::vector<int> Planner::ChildrenOf(Role role) const {
  std::vector<int> children;
  for (size_t i = 0; i < plan_.children.size(); ++i) {
    if (plan_.children[i].role == role) children.push_back(static_cast<int>(i));
  }
  return children;
}

Step Planner::MakeStep() {
  Step step;
  step.child = ChildOf(dice_.OneIn(6) ? Role::kFlood : Role::kServer);
  step.bytes = !full_ ? dice_.Below(20) : dice_.OneIn(20) ? dice_.Below(3000) : dice_.Below(100);
  step.accepted = dice_.OneIn(4);
  step.with_id = !dice_.OneIn(4);
  if (dice_.OneIn(15)) step.deadline_ms = dice_.Between(1, 20);
  if (dice_.OneIn(25)) step.cancel_us = dice_.Below(1500);
  switch (dice_.Below(60)) {
    case 0:
    case 1:
    case 2:
      step.kind = Kind::kRepeat;
      step.number = dice_.Below(5);
      break;
    case 3:
    case 4:
    case 5: {
      step.kind = Kind::kShared;
      step.number = dice_.Below(full_ ? 40 : 4);
      // The same child for all who do it.
      const std::vector<int> servers = ChildrenOf(Role::kServer);
      step.child = servers[static_cast<size_t>(step.number) % servers.size()];
      break;
    }
    case 6:
      step.kind = Kind::kUnknown;
      break;
    case 7:
    case 8:
      step.kind = Kind::kBad;
      step.number = dice_.Below(4);
      break;
    case 9:
      step.kind = Kind::kSignal;
      break;
    case 10:
      step.kind = Kind::kFork;
      step.child = dice_.Below(static_cast<int>(plan_.children.size()));
      break;
    case 11:
    case 12:
    case 13:
      step.kind = Kind::kAttach;
      step.count = full_ ? dice_.Between(1, 60) : 4;
      step.observes = dice_.OneIn(2);
      step.breaks_off = dice_.OneIn(4);
      step.stop_on_failure = dice_.OneIn(4);
      if (dice_.OneIn(3)) step.signal_at = dice_.Below(step.count);
      break;
    default:
      break;
  }
  return step;
}

void Planner::MakeSender() {
  SenderPlan sender;
  const int number = static_cast<int>(plan_.senders.size());
  const int steps = full_ ? dice_.Between(80, 160) : 10;
  for (int i = 0; i < steps; ++i) sender.steps.push_back(MakeStep());
  const auto insert = [&](Step step) {
    const auto at = sender.steps.begin() + dice_.Below(static_cast<int>(sender.steps.size()));
    sender.steps.insert(at, std::move(step));
  };
  if (number == 0) {
    if (full_) {
      insert({.kind = Kind::kFill, .child = ChildOf(Role::kDeaf), .bytes = 12 << 10});
    }
    for (size_t i = 0; i < plan_.children.size(); ++i) {
      if (plan_.children[i].late) {
        insert({.kind = Kind::kFork, .child = static_cast<int>(i)});
      }
    }
  }
  // Some of each in every history.
  const int server = ChildrenOf(Role::kServer)[0];
  insert({.kind = Kind::kSend, .child = server, .accepted = true, .with_id = true});
  insert({.kind = Kind::kSend, .child = server, .with_id = true});
  insert({.kind = Kind::kAttach, .child = server, .with_id = true, .count = 5});
  insert({.kind = Kind::kBad, .child = server, .with_id = true});
  insert({.kind = Kind::kUnknown, .child = server});
  insert({.kind = Kind::kSignal, .child = server});
  insert({.kind = Kind::kFork, .child = server});
  insert({.kind = Kind::kShared, .child = server});
  // In the middle of what others do with it.
  if (number == 1 && full_) {
    insert({.kind = Kind::kDisconnect,
            .child = ChildrenOf(Role::kServer).back(),
            .mode = dice_.Of({v1::DISCONNECT_MODE_FLUSH, v1::DISCONNECT_MODE_NOW})});
  }
  plan_.senders.push_back(std::move(sender));
}

ObservationPlan Planner::MakeObservation(bool first) {
  ObservationPlan plan;
  v1::Observation& observation = plan.observation;
  plan.start =
      first ? dice_.Of({Start::kLatest, Start::kEarliest, Start::kLast, Start::kBeginning})
            : dice_.Of({Start::kLatest, Start::kEarliest, Start::kLast, Start::kBeginning,
                        Start::kOlder, Start::kOtherEpoch, Start::kContinue, Start::kContinue});
  if (dice_.OneIn(2)) {
    for (int i = dice_.Between(1, 3); i > 0; --i) {
      plan.children.push_back(dice_.Below(static_cast<int>(plan_.children.size())));
    }
  }
  if (dice_.OneIn(4)) {
    (*plan.filter.mutable_labels())["half"] = dice_.OneIn(2) ? "even" : "odd";
  }
  if (dice_.OneIn(2)) {
    for (int i = dice_.Between(1, 3); i > 0; --i) {
      observation.add_kinds(static_cast<v1::EventKind>(dice_.Between(1, 9)));
    }
  }
  if (dice_.OneIn(3)) {
    observation.set_direction(dice_.Of({v1::DIRECTION_FROM_CHILD, v1::DIRECTION_TO_CHILD}));
  }
  if (dice_.OneIn(4)) observation.set_response_bytes_max(64 << 10);
  if (dice_.OneIn(4)) observation.mutable_heartbeat_interval()->set_seconds(1);
  if (dice_.OneIn(3)) observation.set_fail_on_gap(true);
  if (dice_.OneIn(4)) {
    const auto [pointer, equals] =
        dice_.Of<std::pair<const char*, const char*>>({{"/n", nullptr},
                                                       {"/kind", "\"even\""},
                                                       {"/from", "\"sender-1\""},
                                                       {"/echo/n", nullptr},
                                                       {"/n", "17"},
                                                       {"/0", nullptr},
                                                       {"/1", nullptr},
                                                       {"", nullptr}});
    v1::ContentFilter& where = *observation.add_where();
    where.set_pointer(pointer);
    if (equals != nullptr) where.set_equals(equals);
  }
  if (dice_.OneIn(4)) observation.set_payload_bytes_max(dice_.Of({0, 1, 7, 40, 1000}));
  if (dice_.OneIn(6)) observation.set_events_per_second_max(dice_.Of({1, 50, 2000}));
  observation.set_when_slow(dice_.Of({v1::SLOW_POLICY_UNSPECIFIED, v1::SLOW_POLICY_GAP,
                                      v1::SLOW_POLICY_DISCONNECT, v1::SLOW_POLICY_BLOCK}));
  if (observation.when_slow() == v1::SLOW_POLICY_BLOCK) {
    observation.mutable_hold_max()->set_nanos(dice_.Between(1, 300) * 1'000'000);
  }
  return plan;
}

void Planner::MakeObserver(int number) {
  ObserverPlan observer;
  const auto end = [&](ObservationPlan& plan) {
    switch (dice_.Below(4)) {
      case 0:
        plan.observation.set_events_max(dice_.Between(1, full_ ? 2000 : 20));
        break;
      case 1:
        plan.observation.mutable_duration()->set_nanos(dice_.Between(1, 150) * 1'000'000);
        break;
      case 2:
        plan.break_off_after = dice_.Below(full_ ? 2000 : 20);
        break;
      default:
        if (plan.children.empty()) {
          plan.break_off_after = dice_.Below(100);
        } else {
          plan.observation.set_until_closed(true);
        }
        break;
    }
    // Should that never be.
    if (!plan.observation.has_duration()) {
      plan.observation.mutable_duration()->set_nanos(500'000'000);
    }
  };
  if (number == 0) {
    // Stands still while everything happens, and then reads on.
    ObservationPlan plan;
    plan.start = dice_.Of({Start::kLatest, Start::kBeginning});
    plan.pause_after = dice_.Between(1, 6);
    plan.pause_to_the_end = true;
    observer.small_window = true;
    observer.observations.push_back(std::move(plan));
  } else if (number == 1) {
    // Comes and goes, and goes on where it was.
    ObservationPlan all;
    if (dice_.OneIn(2)) {
      all = MakeObservation(true);
      all.observation.clear_fail_on_gap();
    }
    all.start = Start::kBeginning;
    for (int i = full_ ? dice_.Between(5, 12) : 4; i > 0; --i) {
      ObservationPlan plan = all;
      if (!observer.observations.empty()) plan.start = Start::kContinue;
      end(plan);
      if (dice_.OneIn(4)) plan.pause_after = dice_.Below(10);
      observer.observations.push_back(std::move(plan));
    }
    all.start = Start::kContinue;
    observer.observations.push_back(std::move(all));
  } else {
    for (int i = full_ ? dice_.Between(3, 10) : 3; i > 0; --i) {
      ObservationPlan plan = MakeObservation(observer.observations.empty());
      plan.observation.mutable_start()->set_last(dice_.Between(1, full_ ? 3000 : 10));
      end(plan);
      if (dice_.OneIn(3)) plan.pause_after = dice_.Below(10);
      observer.observations.push_back(std::move(plan));
    }
    observer.observations.push_back(MakeObservation(false));
  }
  plan_.observers.push_back(std::move(observer));
}

}  // namespace

Plan MakePlan(uint64_t seed, Size size) { return Planner(seed, size).Make(); }

}  // namespace deka::validator
