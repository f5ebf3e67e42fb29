#include "tests/survival/ledger.h"

#include <fcntl.h>
#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/io/zero_copy_stream_impl_lite.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <memory>
#include <utility>

#include "agent/event_encoding.h"
#include "fmt/format.h"
#include "tests/survival/content.h"

namespace deka::storm {
namespace {

int64_t MicrosecondsOf(const v1::Event& event) {
  return event.time().seconds() * 1'000'000 + event.time().nanos() / 1000;
}

std::string Shortened(std::string_view text) {
  constexpr size_t kMax = 120;
  return text.size() <= kMax ? std::string(text)
                             : fmt::format("{}... ({} bytes)", text.substr(0, kMax), text.size());
}

uint64_t NumberOf(std::string_view text) {
  const size_t digits = text.find_first_of("0123456789");
  return digits == std::string_view::npos
             ? 0
             : strtoull(std::string(text.substr(digits, 20)).c_str(), nullptr, 10);
}

}  // namespace

// --- Verdict ---

void Verdict::Kill(std::string text) {
  ipc::MutexLock lock(mutex_);
  kill_ = std::move(text);
  kill_time_ = Clock::now();
}

double Verdict::SecondsSinceStart() const {
  return std::chrono::duration<double>(Clock::now() - start_).count();
}

void Verdict::Violation(const std::string& text) {
  ipc::MutexLock lock(mutex_);
  if (++violations_ > kShownMax) return;
  const double since_kill = std::chrono::duration<double>(Clock::now() - kill_time_).count();
  fmt::print("VIOLATION at {:.3f} s, {:.1f} ms after {}: {}\n", SecondsSinceStart(),
             since_kill * 1000, kill_, text);
  fflush(stdout);
}

size_t Verdict::violations() const {
  ipc::MutexLock lock(mutex_);
  return violations_;
}

// --- MappedAccount ---

MappedAccount::MappedAccount(const std::string& path) {
  // Whoever comes first makes it: the child may not have run yet.
  const int file = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  if (file < 0) return;
  void* mapped = MAP_FAILED;
  if (ftruncate(file, sizeof(Account)) == 0) {
    mapped = mmap(nullptr, sizeof(Account), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  }
  close(file);
  if (mapped != MAP_FAILED) account_ = static_cast<Account*>(mapped);
}

MappedAccount::~MappedAccount() {
  if (account_ != nullptr) munmap(account_, sizeof(Account));
}

// --- Ledger ---

uint64_t HashOf(const v1::Event& event) {
  std::string bytes;
  {
    google::protobuf::io::StringOutputStream stream(&bytes);
    google::protobuf::io::CodedOutputStream coded(&stream);
    coded.SetSerializationDeterministic(true);
    event.SerializeToCodedStream(&coded);
  }
  return std::max<uint64_t>(HashOf(std::string_view(bytes)), 1);
}

const ChildPlan& Ledger::Plan(ChildPlan plan) {
  ipc::MutexLock lock(mutex_);
  std::string key = plan.key;
  return plans_.emplace(std::move(key), std::move(plan)).first->second;
}

void Ledger::Saw(const v1::Event& event) {
  const uint64_t hash = HashOf(event);
  ipc::MutexLock lock(mutex_);
  changed_.NotifyAll();
  ++figures_.events;
  const int64_t last = static_cast<int64_t>(seen_.size()) - 1;
  if (event.sequence() <= last || (!gaps_ && event.sequence() != last + 1)) {
    verdict_.Violation(fmt::format("the witness was shown event {} after event {}: {}",
                                   event.sequence(), last, Shortened(event.ShortDebugString())));
    if (event.sequence() <= last) return;
  }
  if (MicrosecondsOf(event) < time_us_) {
    verdict_.Violation(fmt::format("event {} is earlier than the one before by {} us",
                                   event.sequence(), time_us_ - MicrosecondsOf(event)));
  }
  time_us_ = MicrosecondsOf(event);
  Book& book = books_[event.child()];
  if (event.has_started()) {
    const v1::Child& child = event.started().child();
    const std::string key = child.labels().contains("storm") ? child.labels().at("storm") : "";
    const auto plan = plans_.find(key);
    if (plan == plans_.end()) {
      verdict_.Violation(fmt::format("child {} was started, which nobody has forked: {}",
                                     event.child(), event.ShortDebugString()));
      return;
    }
    Begin(book, plan->second, event.child());
  }
  if (book.plan == nullptr) {
    verdict_.Violation(fmt::format("event {} is of a child that has not started: {}",
                                   event.sequence(), Shortened(event.ShortDebugString())));
    books_.erase(event.child());
    return;
  }
  seen_.resize(static_cast<size_t>(event.sequence()) + 1);
  seen_.back() = {.hash = hash,
                  .child = book.plan,
                  .child_sequence = event.child_sequence(),
                  .kind = agent::KindOf(event.kind_case()),
                  .direction = event.has_from_child() ? v1::DIRECTION_FROM_CHILD
                               : event.has_to_child() ? v1::DIRECTION_TO_CHILD
                                                      : v1::DIRECTION_UNSPECIFIED,
                  .even = event.json().find(R"("kind":"even")") != std::string::npos};
  if (event.child_sequence() != book.child_sequence + 1) {
    verdict_.Violation(fmt::format("event {} of {} has child_sequence {} after {}",
                                   event.sequence(), book.plan->key, event.child_sequence(),
                                   book.child_sequence));
  }
  if (book.closed) {
    verdict_.Violation(
        fmt::format("event {} of {} comes after `closed`", event.sequence(), book.plan->key));
  }
  book.child_sequence = event.child_sequence();
  Saw(book, event);
  if (Account* const account = book.account->get(); account != nullptr) {
    account->shown = book.messages + book.lines[0] + book.lines[1];
  }
}

void Ledger::Saw(Book& book, const v1::Event& event) {
  const std::string& key = book.plan->key;
  switch (event.kind_case()) {
    case v1::Event::kFromChild:
      ++figures_.from_child;
      return SawMessage(book, event);
    case v1::Event::kToChild:
      ++figures_.to_child;
      book.sends.push_back({event.sequence(), HashOf(event.json()), event.to_child().request_id()});
      return;
    case v1::Event::kOutput:
      return SawOutput(book, event);
    case v1::Event::kUndelivered:
      book.undelivered.push_back(event.undelivered().request_id());
      return;
    case v1::Event::kError:
      ++book.truncated;
      if (book.plan->end == End::kKilled && event.error().reason() == "FRAME_TRUNCATED" &&
          book.truncated == 1) {
        return;
      }
      verdict_.Violation(fmt::format("event {} of {} is an error: {}", event.sequence(), key,
                                     Shortened(event.ShortDebugString())));
      return;
    case v1::Event::kSignalled:
      ++book.signalled;
      return;
    case v1::Event::kDisconnected:
      if (book.disconnected || event.disconnected().by() == v1::Disconnected::BY_FAILURE) {
        verdict_.Violation(fmt::format("event {} of {} is another disconnected, or a failure: {}",
                                       event.sequence(), key, event.ShortDebugString()));
      }
      book.disconnected = true;
      return;
    case v1::Event::kExited:
      SawExit(book, event);
      book.exited = true;
      return;
    case v1::Event::kClosed:
      if (book.missed == 0 && (!book.exited || !book.disconnected)) {
        verdict_.Violation(fmt::format("{} has closed without an end", key));
      }
      book.closed = true;
      return;
    default:
      return;
  }
}

void Ledger::SawMessage(Book& book, const v1::Event& event) {
  const ChildPlan& plan = *book.plan;
  const uint64_t number = NumberOf(event.json());
  std::string expected;
  if (plan.role == "echo") {
    const size_t at = event.json().rfind("\"echo\":\"");
    const uint64_t echo =
        at == std::string::npos ? 0 : NumberOf(std::string_view(event.json()).substr(at + 8));
    expected = EchoOf(number, echo);
    book.echoes.resize(std::max<size_t>(book.echoes.size(), number));
    if (number > 0) book.echoes[number - 1] = echo;
  } else {
    expected = MessageOf(plan.seed, number);
  }
  if (event.json() != expected ||
      event.from_child().size_bytes() != static_cast<int64_t>(event.json().size())) {
    verdict_.Violation(fmt::format("event {} of {} is not what it wrote: {}", event.sequence(),
                                   plan.key, Shortened(event.json())));
  }
  const auto missed = static_cast<uint64_t>(book.missed);
  if (number <= book.messages || number > book.messages + 1 + missed) {
    verdict_.Violation(
        fmt::format("event {} of {}: message {} comes after message {}, and {} "
                    "events are missing",
                    event.sequence(), plan.key, number, book.messages, missed));
  }
  // Of a child that does nothing else but `started`, and reads nothing but the word to stop.
  const auto others = static_cast<uint64_t>(event.child_sequence()) - number;
  if (plan.role == "flood" && others != 1 && others != 2) {
    verdict_.Violation(fmt::format("event {} of {}: message {} has child_sequence {}",
                                   event.sequence(), plan.key, number, event.child_sequence()));
  }
  book.messages = number;
}

void Ledger::SawOutput(Book& book, const v1::Event& event) {
  const int stream = event.output().stream() == v1::Output::STREAM_STDERR;
  std::string& piece = book.piece[stream];
  piece += event.text();
  if (event.output().unterminated()) {
    verdict_.Violation(fmt::format("event {} of {}: a line has no end: {}", event.sequence(),
                                   book.plan->key, Shortened(piece)));
  }
  if (event.output().partial()) return;
  ++figures_.lines;
  const std::string line = std::exchange(piece, "");
  // The rest of a line whose beginning is missing.
  if (std::exchange(book.piece_missed[stream], false)) {
    const uint64_t rest = NumberOf(line);
    if (line != LineOf(book.plan->seed, stream, rest)) {
      ++book.lines[stream];
      return;
    }
  }
  const uint64_t number = NumberOf(line);
  if (number <= book.lines[stream] ||
      number > book.lines[stream] + 1 + static_cast<uint64_t>(book.missed)) {
    verdict_.Violation(fmt::format("event {} of {}: line {} of stream {} comes after line {}",
                                   event.sequence(), book.plan->key, number, stream + 1,
                                   book.lines[stream]));
  }
  if (line != LineOf(book.plan->seed, stream, number)) {
    verdict_.Violation(fmt::format("event {} of {}: a line is not what it wrote: {}",
                                   event.sequence(), book.plan->key, Shortened(line)));
  }
  book.lines[stream] = number;
}

void Ledger::SawExit(const Book& book, const v1::Event& event) {
  const v1::ExitStatus& status = event.exited().status();
  const ChildPlan& plan = *book.plan;
  const bool right = plan.end == End::kKilled ? status.signal() == SIGKILL
                                              : status.result_case() == v1::ExitStatus::kCode &&
                                                    status.code() == plan.code;
  if (!right || status.still_held() || book.exited) {
    verdict_.Violation(
        fmt::format("event {} of {}: it ended so: {}; it was to exit with {}", event.sequence(),
                    plan.key, status.ShortDebugString(),
                    plan.end == End::kKilled ? "SIGKILL" : std::to_string(plan.code)));
  }
}

void Ledger::Missed(const v1::Gap& gap) {
  ipc::MutexLock lock(mutex_);
  changed_.NotifyAll();
  if (gaps_) KnowForked(gap.child());
  const auto found = books_.find(gap.child());
  const auto count = gap.to_child_sequence() - gap.from_child_sequence() + 1;
  ++figures_.gaps;
  figures_.missed += count;
  const bool exact = gaps_ && !gap.inexact() && gap.reason() == v1::Gap::REASON_LOG_TURNED_OVER &&
                     gap.has_from_child_sequence() && found != books_.end() && count > 0 &&
                     gap.from_child_sequence() == found->second.child_sequence + 1;
  if (!exact) {
    verdict_.Violation(fmt::format(
        "the witness was told a gap that should not be: {}; it was shown {} of the child's events",
        gap.ShortDebugString(), found == books_.end() ? 0 : found->second.child_sequence));
    if (found == books_.end()) return;
  }
  Book& book = found->second;
  book.child_sequence = gap.to_child_sequence();
  book.missed += count;
  for (int stream = 0; stream < 2; ++stream) {
    book.piece[stream].clear();
    book.piece_missed[stream] = true;
  }
}

void Ledger::KnowForked(const std::string& id) {
  Book& book = books_[id];
  const auto deadline = Clock::now() + kHangs;
  while (book.plan == nullptr) {
    for (const auto& [key, name] : forks_) {
      if (!name.ends_with("/" + id)) continue;
      Begin(book, plans_.at(key), id);
      return;
    }
    if (!changed_.WaitUntil(mutex_, deadline)) {
      books_.erase(id);
      return;
    }
  }
}

void Ledger::Begin(Book& book, const ChildPlan& plan, const std::string& id) {
  if (const auto [other, first] = ids_.emplace(plan.key, id); !first) {
    verdict_.Violation(
        fmt::format("the fork {} has made two children: {} and {}", plan.key, other->second, id));
  }
  book.plan = &plan;
  book.id = id;
  book.account = std::make_shared<MappedAccount>(plan.account);
  ++figures_.children;
}

int64_t Ledger::last() const {
  ipc::MutexLock lock(mutex_);
  return static_cast<int64_t>(seen_.size()) - 1;
}

bool Ledger::AwaitClosed(const std::string& key) const {
  const auto deadline = Clock::now() + kHangs;
  ipc::MutexLock lock(mutex_);
  for (;;) {
    const auto id = ids_.find(key);
    if (id != ids_.end() && books_.at(id->second).closed) return true;
    if (!changed_.WaitUntil(mutex_, deadline)) return false;
  }
}

bool Ledger::AwaitAnything(std::chrono::milliseconds limit) const {
  const auto deadline = Clock::now() + limit;
  ipc::MutexLock lock(mutex_);
  const size_t size = seen_.size();
  while (seen_.size() == size) {
    if (!changed_.WaitUntil(mutex_, deadline)) return false;
  }
  return true;
}

std::string Ledger::KeyOf(const std::string& id) const {
  ipc::MutexLock lock(mutex_);
  const auto book = books_.find(id);
  return book == books_.end() || book->second.plan == nullptr ? "" : book->second.plan->key;
}

void Ledger::Sent(SendRecord record) {
  ipc::MutexLock lock(mutex_);
  sends_.push_back(std::move(record));
}

void Ledger::Forked(const std::string& key, const std::string& name) {
  ipc::MutexLock lock(mutex_);
  changed_.NotifyAll();
  if (const auto [other, first] = forks_.emplace(key, name); !first && other->second != name) {
    verdict_.Violation(
        fmt::format("the fork {} was answered with {}, then with {}", key, other->second, name));
  }
}

void Ledger::CheckAgain(const std::string& name, const std::vector<Shown>& shown) const {
  ipc::MutexLock lock(mutex_);
  int64_t before = 0;
  for (const Shown& event : shown) {
    if (event.sequence <= before) {
      verdict_.Violation(
          fmt::format("{} was shown event {} after event {}", name, event.sequence, before));
    }
    before = event.sequence;
    const auto at = static_cast<size_t>(event.sequence);
    if (at >= seen_.size() || seen_[at].hash == 0) {
      if (gaps_) continue;  // the witness has missed it
      verdict_.Violation(fmt::format("{} was shown event {}, the witness was not", name, at));
    } else if (seen_[at].hash != event.hash) {
      verdict_.Violation(fmt::format("{} was shown another event {} than the witness", name, at));
    }
  }
}

void Ledger::CheckObserver(const std::string& name, const std::vector<Shown>& shown,
                           const std::vector<v1::Gap>& gaps,
                           const std::function<bool(const Seen&)>& fits) const {
  CheckAgain(name, shown);
  ipc::MutexLock lock(mutex_);
  std::map<const ChildPlan*, std::vector<std::pair<int64_t, int64_t>>> missed;
  for (const v1::Gap& gap : gaps) {
    const auto book = books_.find(gap.child());
    if (!gaps_ || gap.inexact() || book == books_.end()) {
      verdict_.Violation(
          fmt::format("{} was told a gap that should not be: {}", name, gap.ShortDebugString()));
      continue;
    }
    missed[book->second.plan].emplace_back(gap.from_child_sequence(), gap.to_child_sequence());
  }
  size_t next = 0;
  for (size_t sequence = 1; sequence < seen_.size(); ++sequence) {
    const Seen& seen = seen_[sequence];
    while (next < shown.size() && shown[next].sequence < static_cast<int64_t>(sequence)) ++next;
    if (seen.hash == 0) continue;
    const bool was_shown =
        next < shown.size() && shown[next].sequence == static_cast<int64_t>(sequence);
    const auto& ranges = missed[seen.child];
    const auto named =
        std::count_if(ranges.begin(), ranges.end(), [&seen](const std::pair<int64_t, int64_t>& r) {
          return r.first <= seen.child_sequence && seen.child_sequence <= r.second;
        });
    if (was_shown != (fits(seen) && named == 0) || named > 1) {
      std::string text = fmt::format(
          "{}: event {} of {}, its {}th, was {}shown, {} the filter, and {} gaps name it:", name,
          sequence, seen.child->key, seen.child_sequence, was_shown ? "" : "not ",
          fits(seen) ? "fits" : "does not fit", named);
      for (size_t i = 0; i < std::min<size_t>(ranges.size(), 8); ++i) {
        text += fmt::format(" {}..{}", ranges[i].first, ranges[i].second);
      }
      verdict_.Violation(text);
    }
  }
}

void Ledger::CheckAll() const {
  ipc::MutexLock lock(mutex_);
  for (const auto& [key, name] : forks_) {
    const auto id = ids_.find(key);
    if (id == ids_.end()) {
      verdict_.Violation(
          fmt::format("{} was answered as the child of fork {}, but never started", name, key));
    } else if (!name.ends_with("/" + id->second)) {
      verdict_.Violation(
          fmt::format("fork {} was answered with {}, but {} was started", key, name, id->second));
    }
  }
  for (const auto& [id, book] : books_) Check(book);
}

void Ledger::Check(const Book& book) const {
  const ChildPlan& plan = *book.plan;
  if (book.account->get() == nullptr) {
    return verdict_.Violation(fmt::format("{} has left no account", plan.key));
  }
  const Account& account = *book.account->get();
  if (!book.closed) verdict_.Violation(fmt::format("{} has not closed", plan.key));
  if (account.failed != 0) {
    verdict_.Violation(
        fmt::format("the channel of {} failed: errno {}", plan.key, account.failed.load()));
  }
  const bool killed = plan.end == End::kKilled;
  if (!killed && account.finished == 0) {
    verdict_.Violation(fmt::format("{} did not come to its end", plan.key));
  }
  const auto missed = static_cast<uint64_t>(book.missed);
  if (book.messages + missed < account.written || book.messages > account.began) {
    verdict_.Violation(
        fmt::format("{} has written {} messages and begun {}, the last one shown "
                    "was {}, and {} events are missing",
                    plan.key, account.written.load(), account.began.load(), book.messages, missed));
  }
  for (int stream = 0; stream < 2; ++stream) {
    const uint64_t lines = account.lines[stream];
    const uint64_t begun = lines + (killed ? 1 : 0);
    if (book.lines[stream] + missed < lines || (missed == 0 && book.lines[stream] > begun) ||
        !book.piece[stream].empty()) {
      verdict_.Violation(fmt::format(
          "{} has written {} lines to stream {}, the last one shown was "
          "{}, then came: {}",
          plan.key, lines, stream + 1, book.lines[stream], Shortened(book.piece[stream])));
    }
  }
  CheckSends(book, account);
}

void Ledger::CheckSends(const Book& book, const Account& account) const {
  const ChildPlan& plan = *book.plan;
  const uint64_t read = account.read;
  const bool reads = plan.role != "burst" && plan.end != End::kKilled;
  // What the child has read is what was shown, in its order.
  if (book.missed == 0) {
    if (read > book.sends.size() || (reads && read != book.sends.size())) {
      verdict_.Violation(
          fmt::format("{} has read {} messages, {} were shown", plan.key, read, book.sends.size()));
    }
    for (uint64_t i = 0; i < std::min<uint64_t>(read, book.sends.size()); ++i) {
      if (account.receipts[i] == book.sends[i].body) continue;
      verdict_.Violation(fmt::format("the {}th message that {} has read is not event {}, {}", i + 1,
                                     plan.key, book.sends[i].sequence, book.sends[i].request_id));
      break;
    }
  }
  // What it has answered is what it has read.
  for (uint64_t i = 0; i < book.echoes.size() && plan.role == "echo"; ++i) {
    if (book.echoes[i] == 0 && book.missed > 0) continue;
    if (i < read && book.echoes[i] == account.receipts[i]) continue;
    verdict_.Violation(
        fmt::format("echo {} of {} answers what it has not read there", i + 1, plan.key));
    break;
  }
  std::unordered_map<uint64_t, int> receipts;
  for (uint64_t i = 0; i < read; ++i) ++receipts[account.receipts[i]];
  std::unordered_map<uint64_t, const Book::ToChild*> shown;
  for (const Book::ToChild& send : book.sends) {
    if (shown.emplace(send.body, &send).second) continue;
    verdict_.Violation(
        fmt::format("event {} of {} is the second with its body", send.sequence, plan.key));
  }
  for (const SendRecord& send : sends_) {
    if (send.child != plan.key) continue;
    const auto event = shown.find(send.body);
    const auto receipt = receipts.find(send.body);
    const int arrived = receipt == receipts.end() ? 0 : receipt->second;
    const bool is_shown = event != shown.end();
    const bool undelivered = std::find(book.undelivered.begin(), book.undelivered.end(),
                                       send.request_id) != book.undelivered.end();
    const auto tell = [&](std::string_view outcome) {
      verdict_.Violation(fmt::format(
          "the send {} to {} was answered {} with event {}; it arrived {} times, it was shown as "
          "event {}{}, and {} events are missing",
          send.request_id, plan.key, outcome, send.sequence, arrived,
          is_shown ? event->second->sequence : 0, undelivered ? ", as undelivered" : "",
          book.missed));
    };
    switch (send.outcome) {
      case Outcome::kWritten:
        if ((reads && arrived != 1) || arrived > 1 || (book.missed == 0 && !is_shown) ||
            (is_shown && send.sequence != 0 && event->second->sequence != send.sequence) ||
            (is_shown && !send.request_id.empty() &&
             event->second->request_id != send.request_id)) {
          tell("WRITTEN");
        }
        break;
      case Outcome::kAccepted:
        if (arrived > 1 || (reads && arrived != 1 && !undelivered) ||
            (book.missed == 0 && is_shown == undelivered)) {
          tell("ACCEPTED");
        }
        break;
      case Outcome::kUnknown:
        if (arrived > 1) tell("OUTCOME_UNKNOWN");
        break;
      case Outcome::kNotSent:
        if (arrived != 0 || is_shown) tell("that it was not sent");
        break;
    }
  }
  if (plan.end == End::kExits && reads && !book.undelivered.empty()) {
    verdict_.Violation(fmt::format("{} sends to {} are undelivered, the first is {}",
                                   book.undelivered.size(), plan.key, book.undelivered[0]));
  }
}

Figures Ledger::figures() const {
  ipc::MutexLock lock(mutex_);
  return figures_;
}

std::string Ledger::ToText() const {
  ipc::MutexLock lock(mutex_);
  std::string text;
  for (const auto& [id, book] : books_) {
    if (book.plan == nullptr || book.closed) continue;
    const Account* const account = book.account->get();
    text += fmt::format(
        "  {} ({}): {} events, {} messages, {} sends; it has written {} and read {}{}{}\n",
        book.plan->key, id, book.child_sequence, book.messages, book.sends.size(),
        account == nullptr ? 0 : account->written.load(),
        account == nullptr ? 0 : account->read.load(), book.disconnected ? ", disconnected" : "",
        book.exited ? ", exited" : "");
  }
  return text;
}

}  // namespace deka::storm
