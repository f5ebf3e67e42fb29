#include "tests/benchmark/ledger.h"

#include <fmt/format.h>

#include <optional>
#include <utility>

#include "tests/benchmark/message.h"

namespace deka::benchmark {
namespace {

std::string IdOf(const std::string& name) { return name.substr(name.rfind('/') + 1); }

}  // namespace

std::string Ledger::Totals::ToJson() const {
  return fmt::format(
      R"({{"events":{},"from_child":{},"to_child":{},"gaps":{},"missed":{},"reported":{},"closed":{},"resumed":{}}})",
      events, from_child, to_child, gaps, missed, reported, closed, resumed);
}

Observer Ledger::Callbacks(From from) {
  Observer observer;
  observer.on_child = [this, from](const v1::Child& child) {
    ipc::MutexLock lock(mutex_);
    if (totals_.resumed > 0) return;
    Account& account = accounts_[IdOf(child.name())];
    account.whole = false;
    account.last = from == From::kNow ? child.last_child_sequence() : kUnknown;
    account.closed = from == From::kNow && child.state() == v1::Child::STATE_CLOSED;
  };
  observer.on_event = [this](const v1::Event& event) { TakeEvent(event); };
  observer.on_gap = [this](const v1::Gap& gap) { TakeGap(gap); };
  observer.on_lost = [this](const absl::Status&) {
    ipc::MutexLock lock(mutex_);
    ++totals_.resumed;
    changed_.NotifyAll();
  };
  observer.on_end = [this](const absl::Status& status, const v1::Fin&) {
    ipc::MutexLock lock(mutex_);
    if (!status.ok()) Break("the observation has ended: " + std::string(status.message()));
    changed_.NotifyAll();
  };
  return observer;
}

void Ledger::TakeEvent(const v1::Event& event) {
  {
    ipc::MutexLock lock(mutex_);
    Account& account = accounts_[event.child()];
    ++totals_.events;
    if (account.closed) Break(fmt::format("child {} had an event after closed", event.child()));
    if (account.last != kUnknown && event.child_sequence() != account.last + 1) {
      Break(fmt::format("event {} of child {} came after {}", event.child_sequence(), event.child(),
                        account.last));
    }
    account.last = event.child_sequence();
    if (event.has_from_child()) {
      TakeMessage(event, account);
    } else if (event.has_to_child()) {
      ++totals_.to_child;
    } else if (event.has_closed()) {
      account.closed = true;
      ++totals_.closed;
      changed_.NotifyAll();
    }
  }
  if (on_message_ && event.has_from_child()) on_message_(event);
}

void Ledger::TakeMessage(const v1::Event& event, Account& account) {
  if (const std::optional<int64_t> sent = SentFromJson(event.json())) {
    if (account.whole && account.messages != *sent) {
      Break(fmt::format("child {} sent {} messages and {} were shown", event.child(), *sent,
                        account.messages));
    }
    if (account.whole) totals_.reported += *sent;
    account.messages = 0;
    account.whole = true;
    account.reported = true;
    changed_.NotifyAll();
    return;
  }
  ++account.messages;
  ++totals_.from_child;
  if (const std::optional<int64_t> stamp = StampOf(event.json())) delays_.Add(NowNs() - *stamp);
}

void Ledger::TakeGap(const v1::Gap& gap) {
  ipc::MutexLock lock(mutex_);
  ++totals_.gaps;
  if (gap.inexact()) return Break("a gap is inexact");
  Account& account = accounts_[gap.child()];
  if (account.last == kUnknown) account.last = gap.from_child_sequence() - 1;
  if (account.closed || gap.from_child_sequence() != account.last + 1 ||
      gap.to_child_sequence() <= account.last) {
    Break(fmt::format("a gap of child {} is {} to {} after {}{}", gap.child(),
                      gap.from_child_sequence(), gap.to_child_sequence(), account.last,
                      account.closed ? " and closed" : ""));
  }
  totals_.missed += gap.to_child_sequence() - account.last;
  account.last = gap.to_child_sequence();
  account.whole = false;
}

void Ledger::Break(std::string what) {
  if (status_.ok()) status_ = absl::DataLossError(std::move(what));
  changed_.NotifyAll();
}

Ledger::Totals Ledger::totals() const {
  ipc::MutexLock lock(mutex_);
  return totals_;
}

absl::Status Ledger::status() const {
  ipc::MutexLock lock(mutex_);
  return status_;
}

Delays Ledger::TakeDelays() {
  ipc::MutexLock lock(mutex_);
  return std::exchange(delays_, Delays());
}

absl::Status Ledger::Await(const std::function<bool(const Totals&)>& condition,
                           std::chrono::milliseconds deadline) {
  const auto end = std::chrono::steady_clock::now() + deadline;
  ipc::MutexLock lock(mutex_);
  while (status_.ok() && !condition(totals_)) {
    // Not everything that is waited for is announced.
    const auto now = std::chrono::steady_clock::now();
    if (now >= end) {
      return absl::DeadlineExceededError("what was to be shown was not: " + totals_.ToJson());
    }
    changed_.WaitUntil(mutex_, std::min(end, now + std::chrono::milliseconds(10)));
  }
  return status_;
}

absl::Status Ledger::AwaitReport(const std::string& child, std::chrono::milliseconds deadline) {
  return AwaitAccount(child, &Account::reported, deadline);
}

absl::Status Ledger::AwaitClosed(const std::string& child, std::chrono::milliseconds deadline) {
  return AwaitAccount(child, &Account::closed, deadline);
}

absl::Status Ledger::AwaitAccount(const std::string& child, bool Account::*fact,
                                  std::chrono::milliseconds deadline) {
  const auto end = std::chrono::steady_clock::now() + deadline;
  ipc::MutexLock lock(mutex_);
  const std::string id = IdOf(child);
  while (status_.ok()) {
    const Account& account = accounts_[id];
    if (account.*fact || account.closed) return absl::OkStatus();
    if (!changed_.WaitUntil(mutex_, end)) {
      return absl::DeadlineExceededError(fmt::format("child {} does not come to its end", id));
    }
  }
  return status_;
}

v1::ObserveRequest Everything() {
  v1::ObserveRequest request;
  request.set_parent("agents/-");
  return request;
}

}  // namespace deka::benchmark
