#include <algorithm>
#include <map>
#include <set>
#include <tuple>
#include <utility>

#include "fmt/format.h"
#include "tests/validator/checks.h"

namespace deka::validator {
namespace {

using Outcome = Send::Outcome;

std::string NameOf(const Send& send, const Facts& facts) {
  return fmt::format(
      "the message {}{}to {}", send.request_id, send.request_id.empty() ? "" : " ",
      send.child < 0 ? "nobody" : NameOf(facts.children()[static_cast<size_t>(send.child)]));
}

// All requests that may have become one event: those of one child with the same id and body, or one
// without an id.
struct Group {
  std::vector<const Send*> sends;
  std::vector<int64_t> written;  // sequences of the events to_child
  // Events that may be its: without an id, and shown to nobody as a whole.
  std::vector<int64_t> may_be_written;
  std::vector<int64_t> undelivered;  // of those that bear the id

  int64_t asked_at() const {
    int64_t first = sends[0]->asked_at;
    for (const Send* send : sends) first = std::min(first, send->asked_at);
    return first;
  }
  // Where it stands among the messages of its child; 0: not known.
  int64_t place() const {
    return !written.empty() ? written[0] : undelivered.size() == 1 ? undelivered[0] : 0;
  }
};

class SendsCheck {
 public:
  SendsCheck(const Facts& facts, Verdict& verdict) : facts_(facts), verdict_(verdict) {}
  void Run();

 private:
  // child, request id, body; without an id the client stands for it.
  using Key = std::tuple<int, std::string, std::string>;

  static Key KeyOf(const Send& send) {
    return {send.child, send.request_id.empty() ? "\n" + send.client : send.request_id, send.json};
  }

  void Collect();
  void TakeEvents();
  void CheckGroup(const Group& group);
  void CheckWritten(const Group& group, const Send& send);
  void CheckOrder();
  void CheckAttachOrder();
  bool WasRead(const Send& send) const {
    return reads_.contains(std::pair(send.child, std::string_view(send.json)));
  }
  const ChildFacts& ChildOf(const Send& send) const {
    return facts_.children()[static_cast<size_t>(send.child)];
  }
  size_t RecordOf(int64_t sequence) const {
    return facts_.events()[static_cast<size_t>(sequence)].record;
  }

  const Facts& facts_;
  Verdict& verdict_;
  std::vector<Group> groups_;
  std::map<Key, size_t> by_key_;
  std::map<const Send*, size_t> group_of_;
  std::multimap<std::pair<int, std::string>, size_t> by_id_;
  std::set<std::pair<int, std::string_view>> reads_;  // by the children's own account
};

void SendsCheck::Run() {
  Collect();
  TakeEvents();
  for (const Group& group : groups_) CheckGroup(group);
  CheckOrder();
  CheckAttachOrder();
}

void SendsCheck::Collect() {
  for (const Send& send : facts_.sends()) {
    if (send.child < 0) continue;
    const auto [entry, is_new] = by_key_.try_emplace(KeyOf(send), groups_.size());
    if (is_new) {
      groups_.emplace_back();
      by_id_.emplace(std::pair(send.child, std::get<1>(entry->first)), entry->second);
    }
    groups_[entry->second].sends.push_back(&send);
    group_of_[&send] = entry->second;
  }
  for (size_t i = 0; i < facts_.children().size(); ++i) {
    for (const size_t record : facts_.children()[i].account) {
      if (facts_.recording()[record].what != What::kRead) continue;
      if (const auto* event = facts_.recording()[record].As<v1::Event>()) {
        reads_.emplace(static_cast<int>(i), event->json());
      }
    }
  }
}

void SendsCheck::TakeEvents() {
  for (int64_t sequence = 1; sequence <= facts_.head(); ++sequence) {
    const EventFact& fact = facts_.events()[static_cast<size_t>(sequence)];
    if (fact.event == nullptr) continue;
    const v1::Event& event = *fact.event;
    if (event.has_undelivered()) {
      const auto [begin, end] = by_id_.equal_range({fact.child, event.undelivered().request_id()});
      for (auto each = begin; each != end; ++each) {
        // One of those that the id was refused to it was not.
        const std::vector<const Send*>& sends = groups_[each->second].sends;
        const bool reused = std::all_of(sends.begin(), sends.end(), [](const Send* send) {
          return send->reason == "REQUEST_ID_REUSED";
        });
        if (!reused) groups_[each->second].undelivered.push_back(sequence);
      }
      verdict_.Exercise(Check::kAccepted);
      if (event.undelivered().written_bytes() >= event.undelivered().frame_bytes()) {
        verdict_.Violate(
            Check::kAccepted,
            fmt::format("{} says that {} of {} bytes were written", NameOf(event, facts_),
                        event.undelivered().written_bytes(), event.undelivered().frame_bytes()),
            {fact.record});
      }
    }
    if (!event.has_to_child()) continue;
    const v1::MessageToChild& to_child = event.to_child();
    const std::string id =
        to_child.request_id().empty() ? "\n" + to_child.sender().client() : to_child.request_id();
    const auto found = by_key_.find({fact.child, id, event.json()});
    if (found != by_key_.end()) {
      groups_[found->second].written.push_back(sequence);
      continue;
    }
    // Shown to nobody as a whole: the id, or the client, has to do.
    const auto [begin, end] = by_id_.equal_range({fact.child, id});
    bool known = false;
    for (auto each = begin; each != end; ++each) {
      const std::string& json = groups_[each->second].sends[0]->json;
      if (!json.starts_with(event.json()) ||
          static_cast<int64_t>(json.size()) != to_child.size_bytes()) {
        continue;
      }
      Group& group = groups_[each->second];
      (to_child.request_id().empty() ? group.may_be_written : group.written).push_back(sequence);
      known = true;
    }
    if (!known && static_cast<int64_t>(event.json().size()) == to_child.size_bytes()) {
      verdict_.Violate(Check::kWritten,
                       fmt::format("{} is nothing that anybody sent to it", NameOf(event, facts_)),
                       {fact.record});
    }
  }
}

void SendsCheck::CheckGroup(const Group& group) {
  const Send& first = *group.sends[0];
  const ChildFacts& child = ChildOf(first);
  std::vector<size_t> records;
  for (const Send* send : group.sends) {
    records.push_back(send->asked);
    if (send->answered != send->asked) records.push_back(send->answered);
  }
  for (const int64_t sequence : group.written) records.push_back(RecordOf(sequence));

  if (group.sends.size() > 1) verdict_.Exercise(Check::kSendOnce);
  // Without an id each is sent.
  const size_t once = first.request_id.empty() ? group.sends.size() : 1;
  if (group.written.size() > once) {
    verdict_.Violate(
        Check::kSendOnce,
        fmt::format("{} was sent {} times", NameOf(first, facts_), group.written.size()), records);
    return;
  }
  int64_t sequence = 0;
  bool all_refused = true, all_repeats = true, accepted = false;
  for (const Send* send : group.sends) {
    all_refused &= send->outcome == Outcome::kRefused;
    all_repeats &= send->repeat;
    accepted |= send->outcome == Outcome::kAccepted;
    if (send->outcome != Outcome::kWritten) continue;
    CheckWritten(group, *send);
    if (send->sequence == 0) continue;
    if (sequence != 0 && send->sequence != sequence && !first.request_id.empty()) {
      verdict_.Violate(Check::kSendOnce,
                       fmt::format("{} is answered with sequence {} and with {}",
                                   NameOf(first, facts_), sequence, send->sequence),
                       records);
    }
    sequence = send->sequence;
  }
  if (all_refused) {
    verdict_.Exercise(Check::kRefused);
    const bool begun = std::any_of(
        group.undelivered.begin(), group.undelivered.end(),
        [&](int64_t each) { return facts_.EventAt(each)->undelivered().written_bytes() > 0; });
    if (!group.written.empty() || WasRead(first) || begun) {
      verdict_.Violate(Check::kRefused,
                       fmt::format("{} was refused with {}, and written all the same",
                                   NameOf(first, facts_), first.reason),
                       records);
    }
  }
  if (all_repeats) {
    verdict_.Exercise(Check::kNotRemembered);
    if (!group.written.empty() || WasRead(first)) {
      verdict_.Violate(Check::kNotRemembered,
                       fmt::format("{} was sent, though each of its requests said that it was a "
                                   "repeat",
                                   NameOf(first, facts_)),
                       records);
    }
  }
  if (accepted) {
    verdict_.Exercise(Check::kAccepted);
    // Without an id `undelivered` does not say which one it is.
    if (child.complete() && group.written.empty() && group.undelivered.empty() &&
        !first.request_id.empty()) {
      verdict_.Violate(Check::kAccepted,
                       fmt::format("{} was accepted, and is neither `to_child` nor `undelivered`",
                                   NameOf(first, facts_)),
                       records);
    }
  }
}

void SendsCheck::CheckWritten(const Group& group, const Send& send) {
  verdict_.Exercise(Check::kWritten);
  const auto wrong = [&](const std::string& what, std::vector<size_t> records) {
    records.insert(records.begin(), {send.asked, send.answered});
    verdict_.Violate(Check::kWritten,
                     fmt::format("{} was answered WRITTEN, {}", NameOf(send, facts_), what),
                     std::move(records));
  };
  if (send.sequence != 0) {
    const v1::Event* const event = facts_.EventAt(send.sequence);
    if (event == nullptr) {
      if (!group.written.empty()) {
        wrong("with a sequence that is not its event's", {RecordOf(group.written[0])});
      } else if (ChildOf(send).complete()) {
        wrong("and its child has no such event", {});
      }
      return;
    }
    const auto has = [&](const std::vector<int64_t>& sequences) {
      return std::find(sequences.begin(), sequences.end(), send.sequence) != sequences.end();
    };
    if (!has(group.written) && !has(group.may_be_written)) {
      return wrong(fmt::format("but {} is another", deka::validator::NameOf(*event, facts_)),
                   {RecordOf(send.sequence)});
    }
  } else if (group.written.empty()) {
    if (ChildOf(send).complete()) wrong("and its child has no such event", {});
    return;
  }
  // Whoever was first of those that gave the same id.
  const v1::Sender& sender = facts_.EventAt(group.written[0])->to_child().sender();
  const bool known = sender.principal().starts_with("uid:") &&
                     std::any_of(group.sends.begin(), group.sends.end(),
                                 [&](const Send* each) { return each->client == sender.client(); });
  if (!known) {
    wrong(fmt::format("and its event is of {} {}", sender.principal(), sender.client()),
          {RecordOf(group.written[0])});
  }
}

void SendsCheck::CheckOrder() {
  // What came after all that was known when it was asked for.
  for (const Group& group : groups_) {
    const int64_t place = group.place();
    if (place == 0) continue;
    verdict_.Exercise(Check::kCallOrder);
    const int64_t known = facts_.KnownBefore(group.asked_at());
    if (place > known) continue;
    verdict_.Violate(Check::kCallOrder,
                     fmt::format("{} has sequence {}, and {} was known before it was asked for",
                                 NameOf(*group.sends[0], facts_), place, known),
                     {group.sends[0]->asked, RecordOf(place)});
  }
  // Those that were accepted one after the other, by child.
  std::map<int, std::vector<const Group*>> by_child;
  for (const Group& group : groups_) {
    if (group.sends.size() == 1 && group.place() != 0) {
      by_child[group.sends[0]->child].push_back(&group);
    }
  }
  for (auto& [child, asked] : by_child) {
    std::vector<const Group*> accepted;
    for (const Group* group : asked) {
      if (group->sends[0]->outcome == Outcome::kAccepted) accepted.push_back(group);
    }
    std::sort(accepted.begin(), accepted.end(), [](const Group* a, const Group* b) {
      return a->sends[0]->answered_at < b->sends[0]->answered_at;
    });
    std::sort(asked.begin(), asked.end(), [](const Group* a, const Group* b) {
      return a->sends[0]->asked_at < b->sends[0]->asked_at;
    });
    const Group* last = nullptr;  // the one that stands last of those accepted before
    auto next = accepted.begin();
    for (const Group* group : asked) {
      for (; next != accepted.end() && (*next)->sends[0]->answered_at < group->sends[0]->asked_at;
           ++next) {
        if (last == nullptr || (*next)->place() > last->place()) last = *next;
      }
      if (last == nullptr) continue;
      verdict_.Exercise(Check::kAcceptedOrder);
      if (group->place() > last->place()) continue;
      verdict_.Violate(Check::kAcceptedOrder,
                       fmt::format("{} stands before one that was accepted before it was asked for",
                                   NameOf(*group->sends[0], facts_)),
                       {last->sends[0]->answered, group->sends[0]->asked, RecordOf(group->place()),
                        RecordOf(last->place())});
    }
  }
}

void SendsCheck::CheckAttachOrder() {
  std::map<int64_t, const Group*> last;  // by call
  for (const Send& send : facts_.sends()) {
    const auto found = group_of_.find(&send);
    if (send.attach == 0 || found == group_of_.end()) continue;
    const Group& group = groups_[found->second];
    if (group.sends.size() > 1 || group.place() == 0) continue;
    const Group*& before = last[send.attach];
    if (before != nullptr) {
      verdict_.Exercise(Check::kAttachOrder);
      if (group.place() < before->place()) {
        verdict_.Violate(
            Check::kAttachOrder,
            fmt::format("{} stands before an earlier one of the same Attach", NameOf(send, facts_)),
            {before->sends[0]->asked, send.asked, RecordOf(group.place()),
             RecordOf(before->place())});
      }
    }
    before = &group;
  }
}

void CheckForks(const Facts& facts, Verdict& verdict) {
  std::map<std::string, std::vector<const Fork*>> by_id;
  for (const Fork& fork : facts.forks()) {
    if (!fork.request.request_id().empty()) by_id[fork.request.request_id()].push_back(&fork);
    if (fork.response == nullptr) continue;
    const int number = facts.ChildNamed(fork.response->child().name());
    const ChildFacts& child = facts.children()[static_cast<size_t>(number)];
    const int64_t cursor = fork.response->cursor().sequence();
    if (child.started != 0 && child.started <= cursor) {
      verdict.Violate(
          Check::kLaterChild,
          fmt::format("the cursor {} of a fork lies behind the `started` of {}, sequence {}",
                      cursor, NameOf(child), child.started),
          {fork.answered});
    }
  }
  for (const auto& [id, forks] : by_id) {
    if (forks.size() < 2) continue;
    verdict.Exercise(Check::kForkOnce);
    std::set<int> children;
    for (const Fork* fork : forks) {
      if (fork->response != nullptr) {
        children.insert(facts.ChildNamed(fork->response->child().name()));
      }
    }
    // Whoever else has its display name was forked twice.
    const std::string& name = forks[0]->request.spec().display_name();
    for (const ChildFacts& child : facts.children()) {
      if (!name.empty() && child.display_name == name) {
        children.insert(facts.ChildNamed(child.id));
      }
    }
    if (children.size() <= 1) continue;
    verdict.Violate(Check::kForkOnce,
                    fmt::format("the fork {} has started {} children", id, children.size()),
                    {forks[0]->answered, forks[1]->answered});
  }
}

void CheckSignals(const Facts& facts, Verdict& verdict) {
  for (const Signal& signal : facts.signals()) {
    if (signal.sequence == 0) continue;
    const v1::Event* const event = facts.EventAt(signal.sequence);
    if (event == nullptr) continue;
    verdict.Exercise(Check::kSignalledFirst);
    if (event->has_signalled() && event->signalled().signal() == signal.number &&
        facts.ChildNamed(event->child()) == signal.child &&
        event->signalled().sender().client() == signal.client &&
        signal.sequence > facts.KnownBefore(signal.asked_at)) {
      continue;
    }
    verdict.Violate(
        Check::kSignalledFirst,
        fmt::format("signal {} was answered with {}", signal.number, NameOf(*event, facts)),
        {signal.asked, signal.answered,
         facts.events()[static_cast<size_t>(signal.sequence)].record});
  }
}

}  // namespace

void CheckRequests(const Facts& facts, Verdict& verdict) {
  SendsCheck(facts, verdict).Run();
  CheckForks(facts, verdict);
  CheckSignals(facts, verdict);
}

}  // namespace deka::validator
