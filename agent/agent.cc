#include "agent/agent.h"

#include <fmt/format.h>
#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/io/zero_copy_stream_impl_lite.h>
#include <google/protobuf/util/time_util.h>
#include <sys/random.h>
#include <unistd.h>

#include <algorithm>
#include <deque>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "agent/answer.h"
#include "agent/event_log.h"
#include "agent/fingerprint.h"
#include "agent/names.h"
#include "agent/recorded_child.h"
#include "agent/spec.h"
#include "agent/wall_time.h"
#include "ipc/error.h"
#include "ipc/version.h"

namespace deka::agent {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kPageSize = 100;
constexpr int kPageSizeMax = 1000;
constexpr size_t kPageBytesMax = 1 << 20;  // but for one child: stock clients receive 4 MiB
constexpr size_t kCandidatesShown = 20;    // of a name that several children have

v1::Sender SenderOf(const Caller& caller) {
  v1::Sender sender;
  sender.set_principal(caller.principal);
  sender.set_client(caller.client);
  return sender;
}

// Equal bytes for equal messages, maps in order.
std::string Canonical(const google::protobuf::Message& message) {
  std::string bytes;
  google::protobuf::io::StringOutputStream stream(&bytes);
  google::protobuf::io::CodedOutputStream output(&stream);
  output.SetSerializationDeterministic(true);
  message.SerializeToCodedStream(&output);
  output.Trim();
  return bytes;
}

uint64_t RandomSeed() {
  uint64_t seed = 0;
  while (getrandom(&seed, sizeof(seed), 0) != sizeof(seed)) {
  }
  return seed;
}

// The same in a successor: it knows page tokens and repeated forks again.
uint64_t SeedOf(AgentMemory* memory) {
  if (memory == nullptr) return RandomSeed();
  if (memory->seed == 0) memory->seed = RandomSeed();
  return memory->seed;
}

std::string HostName() {
  char name[256] = {};
  return gethostname(name, sizeof(name) - 1) == 0 ? name : "";
}

// The place in a list of children that a page ends at, as text that only this agent can have made
// for this query.
//
//   token := {after:16 hex}{sequence:16 hex}{fingerprint of both and the query:16 hex}
struct PagePlace {
  int64_t after = 0;     // number of the last child shown
  int64_t sequence = 0;  // of the first page

  std::string Token(std::string_view query, uint64_t seed) const {
    const std::string place = fmt::format("{:016x}{:016x}", after, sequence);
    return fmt::format("{}{:016x}", place, Fingerprint(fmt::format("{}{}", place, query), seed));
  }

  static absl::StatusOr<PagePlace> Parse(std::string_view token, std::string_view query,
                                         uint64_t seed) {
    PagePlace place;
    constexpr size_t kDigits = 16;
    if (token.size() == 3 * kDigits) {
      const auto number = [&](size_t index) {
        const std::string digits(token.substr(index * kDigits, kDigits));
        return static_cast<int64_t>(std::strtoull(digits.c_str(), nullptr, 16));
      };
      place = {.after = number(0), .sequence = number(1)};
      if (place.Token(query, seed) == token) return place;
    }
    return ipc::MakeError(
        ipc::Reason::kPageTokenInvalid,
        "The page token is of another query, or none of this agent's. Start again "
        "without one.",
        {{"field", "page_token"}});
  }
};

template <typename T>
std::map<std::string, T> ToMap(const google::protobuf::Map<std::string, T>& map) {
  return {map.begin(), map.end()};
}

}  // namespace

// Everything runs on the loop's thread; `Post` brings others' requests there.
class Agent::Impl : public std::enable_shared_from_this<Agent::Impl> {
 public:
  Impl(ipc::EventLoop& loop, Options options)
      : loop_(loop),
        options_(std::move(options)),
        lineage_(options_.lineage),
        log_({.agent = options_.id,
              .logs_bytes_max = options_.limits.logs_bytes_max,
              .observers_max = options_.limits.observers_max,
              .incarnation = options_.lineage.incarnation,
              .memory = options_.memory}),
        queues_(options_.limits.queues_bytes_max),
        forget_timer_(loop),
        forget_task_(loop, [this] { ForgetEnded(); }),
        stop_timer_(loop),
        stop_task_(loop, [this] { HastenStop(); }) {}

  const std::string& id() const { return options_.id; }
  ipc::EventLoop& loop() { return loop_; }

  // Calls `request(answer)` on the loop's thread. If it never gets there, the answer is that the
  // agent is stopping.
  template <typename T, typename Request>
  void Post(Done<T> done, Request request) {
    loop_.Post([weak = weak_from_this(), answer = Answer<T>(std::move(done)),
                request = std::move(request)]() mutable {
      const std::shared_ptr<Impl> self = weak.lock();
      if (self == nullptr || self->stopping_) return answer(StoppingError());
      request(*self, std::move(answer));
    });
  }

  absl::StatusOr<Child*> Fork(ipc::ForkOptions options, Agent::Description description,
                              Child::Listener* listener);
  absl::StatusOr<Child*> Adopt(int socket, pid_t pid, ipc::Dialect dialect,
                               Agent::Description description, Child::Listener* listener);

  std::vector<absl::Status> Recover(std::vector<FoundChild> children);

  absl::StatusOr<v1::ForkChildResponse> ForkChild(const v1::ForkChildRequest& request,
                                                  const Caller& caller);
  absl::StatusOr<v1::ListChildrenResponse> ListChildren(const v1::ListChildrenRequest& request);
  absl::StatusOr<std::unique_ptr<Observation>> Observe(const v1::ObserveRequest& request);
  v1::Agent ToProto() const;

  // The child that a caller's name means.
  absl::StatusOr<RecordedChild*> Find(std::string_view name) const;
  // The same for the last part of a name.
  absl::StatusOr<RecordedChild*> FindPart(const std::string& part) const;
  // Null if it is not known any more.
  RecordedChild* FindById(const std::string& id) const;

  void PostLineage(Lineage lineage) {
    loop_.Post([weak = weak_from_this(), lineage] {
      const std::shared_ptr<Impl> self = weak.lock();
      if (self == nullptr) return;
      self->lineage_ = lineage;
      if (lineage.degraded) self->log_.Degrade();
    });
  }

  void PostStop(StopOptions options, absl::AnyInvocable<void()> done) {
    loop_.Post([weak = weak_from_this(), options, done = std::move(done)]() mutable {
      if (const std::shared_ptr<Impl> self = weak.lock()) self->Stop(options, std::move(done));
    });
  }

 private:
  // A fork that is remembered by its request id.
  struct RememberedFork {
    uint64_t fingerprint;
    v1::ForkChildResponse response;
  };

  // What a filter means now.
  struct Selection {
    bool all = false;  // no name was given, or `-`
    absl::flat_hash_set<const RecordedChild*> named = {};
    Labels labels = {};
    uint32_t states = ~0u;  // a bit for each v1::Child::State

    bool Has(const RecordedChild& child) const {
      return (all || named.contains(&child)) && HasLabels(child.labels(), labels) &&
             (states >> child.state() & 1) != 0;
    }
  };

  // `of_file`: its memory is to outlive the agent.
  absl::StatusOr<RecordedChild*> Make(Agent::Description description, std::string program,
                                      std::vector<std::string> args, const ChildLimits& limits,
                                      ipc::StreamMemory::Limits streams, bool of_file,
                                      Child::Listener* listener);
  RecordedChild* Add(int64_t number, RecordedChild::Description description,
                     std::shared_ptr<ChildMemory> memory, std::shared_ptr<Log> log,
                     Child::Listener* listener);
  absl::Status RecoverChild(FoundChild found);
  void Discard(RecordedChild& child);
  // Starts the child, or discards it.
  absl::StatusOr<RecordedChild*> Start(RecordedChild& child, ipc::ForkOptions options,
                                       std::chrono::milliseconds timeout, const v1::Sender& sender,
                                       const RecordedChild::ForkId& fork_id);

  absl::StatusOr<Selection> Select(const v1::ChildFilter& filter) const;

  v1::ForkChildResponse ForkResponse(const RecordedChild& child, int64_t sequence) const;
  const v1::ForkChildResponse& Remember(const std::string& key, uint64_t fingerprint,
                                        int64_t sequence, const RecordedChild& child,
                                        Clock::time_point when);
  void ForgetOldForks();
  void OnEnding();
  void OnClosed(RecordedChild& child);
  void ForgetEnded();

  // Stopping: the phases, one after the other.
  enum class Phase { kDisconnect, kClose, kTerminate, kKill };
  void Stop(StopOptions options, absl::AnyInvocable<void()> done);
  void Hurry(StopOptions options);
  bool AnyRunning() const;
  bool AnyOpenChannel() const;
  void Disconnect();
  void CloseChannels();
  void SendTerm();
  void SendKill();
  void FinishStop();
  // Goes on at once if what a phase waits for has happened.
  void HastenStop();

  ipc::EventLoop& loop_;
  const Options options_;
  const std::chrono::system_clock::time_point start_time_ = std::chrono::system_clock::now();
  Lineage lineage_;
  const std::vector<std::string> environment_ = ipc::OwnEnvironment();
  const uint64_t seed_ = SeedOf(options_.memory);
  EventLog log_;
  QueueBudget queues_;

  // In the order they were started; a child's number is never used again.
  std::map<int64_t, std::unique_ptr<RecordedChild>> children_;
  int64_t last_number_ = 0;
  absl::flat_hash_map<std::string, int64_t> by_id_;
  std::multimap<std::string, int64_t, std::less<>> by_display_name_;

  // Closed ones, the first to be forgotten first.
  std::deque<std::pair<Clock::time_point, int64_t>> ended_;
  ipc::Timer forget_timer_;
  ipc::TurnTask forget_task_;

  absl::flat_hash_map<std::string, RememberedFork> forks_;
  std::deque<std::pair<Clock::time_point, std::string>> forks_by_age_;

  bool stopping_ = false;
  bool stopped_ = false;
  StopOptions stop_options_;
  Phase stop_phase_ = Phase::kDisconnect;
  std::vector<absl::AnyInvocable<void()>> stop_done_;
  ipc::Timer stop_timer_;
  ipc::TurnTask stop_task_;
};

absl::StatusOr<RecordedChild*> Agent::Impl::Make(Agent::Description description,
                                                 std::string program, std::vector<std::string> args,
                                                 const ChildLimits& limits,
                                                 ipc::StreamMemory::Limits streams, bool of_file,
                                                 Child::Listener* listener) {
  if (stopping_) return StoppingError();
  if (absl::Status status = ValidateDisplayName(description.display_name); !status.ok()) {
    return status;
  }
  if (absl::Status status = ValidateLabels(description.labels); !status.ok()) return status;
  if (children_.size() - ended_.size() >= options_.limits.children_max) {
    return ipc::MakeError(
        ipc::Reason::kChildrenLimit,
        fmt::format("The agent has {} children, as many as it may (children_max). Try again when "
                    "some have ended.",
                    options_.limits.children_max),
        {{"limit", fmt::format("{}", options_.limits.children_max)}});
  }
  const int64_t number = last_number_ + 1;
  if (of_file) streams.note_bytes_max = ipc::StreamMemory::kNoteBytesMax;
  const ChildMemory::Limits memory_limits = {
      .streams = streams,
      .log_bytes_max = limits.log_bytes_max,
      .finished_max = of_file ? options_.limits.send_request_ids_max : 0};
  absl::StatusOr<std::shared_ptr<ChildMemory>> memory =
      of_file ? ChildMemory::Create(memory_limits, static_cast<uint64_t>(number))
              : ChildMemory::Allocate(memory_limits);
  if (!memory.ok()) return memory.status();
  std::string id = RandomId();
  while (by_id_.contains(id)) id = RandomId();
  absl::StatusOr<std::shared_ptr<Log>> log =
      log_.AddChild(id, description.labels, ChildMemory::LogOf(*memory), limits.log_bytes_max,
                    options_.limits.log_events_max);
  if (!log.ok()) return log.status();
  return Add(number,
             {.id = std::move(id),
              .display_name = std::move(description.display_name),
              .labels = std::move(description.labels),
              .limits = limits,
              .program = std::move(program),
              .args = std::move(args)},
             *std::move(memory), *std::move(log), listener);
}

RecordedChild* Agent::Impl::Add(int64_t number, RecordedChild::Description description,
                                std::shared_ptr<ChildMemory> memory, std::shared_ptr<Log> log,
                                Child::Listener* listener) {
  last_number_ = std::max(last_number_, number);
  by_id_[description.id] = number;
  if (!description.display_name.empty()) by_display_name_.emplace(description.display_name, number);
  auto child = std::make_unique<RecordedChild>(
      RecordedChild::Environment{.loop = loop_,
                                 .log = log_,
                                 .queues = queues_,
                                 .limits = options_.limits,
                                 .keeper = memory->file() >= 0 ? options_.keeper : nullptr,
                                 .on_ending = [this] { OnEnding(); },
                                 .on_closed = [this](RecordedChild& closed) { OnClosed(closed); }},
      std::move(description), std::move(memory), std::move(log), listener);
  return (children_[number] = std::move(child)).get();
}

std::vector<absl::Status> Agent::Impl::Recover(std::vector<FoundChild> children) {
  std::vector<absl::Status> failures;
  std::sort(children.begin(), children.end(),
            [](const FoundChild& a, const FoundChild& b) { return a.number < b.number; });
  for (FoundChild& found : children) {
    const uint64_t number = found.number;
    if (absl::Status status = RecoverChild(std::move(found)); !status.ok()) {
      failures.push_back(std::move(status));
      options_.keeper->Forget(number);
    }
  }
  // As they ended, and as they were forked.
  std::vector<std::pair<int64_t, int64_t>> ended;  // when, number
  for (const auto& [number, child] : children_) {
    if (child->closed()) ended.emplace_back(child->log()->newest_time_us(), number);
  }
  std::sort(ended.begin(), ended.end());
  for (const auto& [time_us, number] : ended) {
    ended_.emplace_back(Clock::now() - AgeOf(time_us), number);
  }
  std::sort(forks_by_age_.begin(), forks_by_age_.end());
  forget_task_.Schedule();
  return failures;
}

absl::Status Agent::Impl::RecoverChild(FoundChild found) {
  absl::StatusOr<std::shared_ptr<ChildMemory>> memory =
      ChildMemory::Recover(std::move(found.memory), *options_.memory);
  if (!memory.ok()) return memory.status();
  const auto impossible = [&](std::string_view what) {
    return ipc::MakeError(
        ipc::Reason::kInvalidArgument,
        fmt::format("The memory of child {} cannot be taken over: {}.", found.number, what));
  };
  stored::v1::StoredChild stored;
  if ((*memory)->number() != found.number) return impossible("it is another child's");
  if (!stored.ParseFromString(std::string((*memory)->description()))) {
    return impossible("its description is no StoredChild");
  }
  const absl::StatusOr<std::string> id =
      ParseChildName(stored.child().name(), this->id(), Wildcard::kRefused);
  if (!id.ok() || by_id_.contains(*id)) return impossible("its name is no child's, or another's");
  const ChildMemory::Limits& limits = (*memory)->control().limits;
  const Labels labels = ToMap(stored.child().labels());
  absl::StatusOr<std::shared_ptr<Log>> log = log_.AddChild(
      *id, labels, ChildMemory::LogOf(*memory), limits.log_bytes_max, stored.log_events_max());
  if (!log.ok()) return log.status();
  RecordedChild* const child =
      Add(static_cast<int64_t>(found.number),
          {.id = *id,
           .display_name = stored.child().display_name(),
           .labels = labels,
           .limits = {.message_bytes_max = limits.streams.message_bytes_max,
                      .queue_bytes_max = limits.streams.queue_bytes_max,
                      .log_bytes_max = limits.log_bytes_max},
           .program = stored.child().program(),
           .args = {stored.child().args().begin(), stored.child().args().end()}},
          *std::move(memory), *std::move(log), /*listener=*/nullptr);
  if (absl::Status status = child->Recover(std::move(found), stored); !status.ok()) {
    Discard(*child);
    return status;
  }
  if (!stored.fork_key().empty()) {
    Remember(stored.fork_key(), stored.fork_fingerprint(), stored.fork_sequence(), *child,
             Clock::now() - AgeOf(stored.child().start_time().seconds() * 1'000'000));
  }
  return absl::OkStatus();
}

void Agent::Impl::Discard(RecordedChild& child) {
  const auto number = by_id_.find(child.id());
  auto [begin, end] = by_display_name_.equal_range(child.display_name());
  while (begin != end && begin->second != number->second) ++begin;
  if (begin != end) by_display_name_.erase(begin);
  const std::shared_ptr<Log> log = child.log();
  if (child.memory().file() >= 0) options_.keeper->Forget(child.memory().number());
  children_.erase(number->second);
  by_id_.erase(number);
  log_.Forget(log);
}

absl::StatusOr<RecordedChild*> Agent::Impl::Start(RecordedChild& child, ipc::ForkOptions options,
                                                  std::chrono::milliseconds timeout,
                                                  const v1::Sender& sender,
                                                  const RecordedChild::ForkId& fork_id) {
  if (!options.descriptors_soft_max) options.descriptors_soft_max = options_.descriptors_soft_max;
  if (absl::Status status = child.Fork(std::move(options), timeout, sender, fork_id);
      !status.ok()) {
    Discard(child);
    return status;
  }
  return &child;
}

absl::StatusOr<Child*> Agent::Impl::Fork(ipc::ForkOptions options, Agent::Description description,
                                         Child::Listener* listener) {
  const ChildLimits limits = {.message_bytes_max = options.channel.message_bytes_max,
                              .queue_bytes_max = options.channel.queue_bytes_max,
                              .log_bytes_max = description.log_bytes_max != 0
                                                   ? description.log_bytes_max
                                                   : options_.limits.log_bytes_max};
  if (absl::Status status = ValidateChildLimits(limits, options_.limits); !status.ok()) {
    return status;
  }
  const absl::StatusOr<RecordedChild*> child =
      Make(std::move(description), options.program, options.args, limits,
           ipc::ChildProcess::MemoryLimits(options), /*of_file=*/false, listener);
  if (!child.ok()) return child.status();
  // The time-out is the agent's to keep: the signal that it sends is an event.
  const auto timeout = std::exchange(options.timeout, std::chrono::milliseconds(0));
  return Start(**child, std::move(options), timeout, OwnSender(), RecordedChild::ForkId());
}

absl::StatusOr<Child*> Agent::Impl::Adopt(int socket, pid_t pid, ipc::Dialect dialect,
                                          Agent::Description description,
                                          Child::Listener* listener) {
  ipc::Descriptor owned(socket);
  const Limits& agent = options_.limits;
  const ChildLimits limits = {.message_bytes_max = agent.message_bytes_max,
                              .queue_bytes_max = agent.queue_bytes_max,
                              .log_bytes_max = description.log_bytes_max != 0
                                                   ? description.log_bytes_max
                                                   : agent.log_bytes_max};
  if (absl::Status status = ValidateChildLimits(limits, agent); !status.ok()) return status;
  ipc::Channel::Options channel;
  channel.dialect = dialect;
  channel.message_bytes_max = limits.message_bytes_max;
  channel.queue_bytes_max = limits.queue_bytes_max;
  channel.queue_messages_max = agent.queue_messages_max;
  const absl::StatusOr<RecordedChild*> child =
      Make(std::move(description), /*program=*/{}, /*args=*/{}, limits, channel.memory_limits(),
           /*of_file=*/false, listener);
  if (!child.ok()) return child.status();
  if (absl::Status status = (*child)->Adopt(owned.Release(), pid, std::move(channel), OwnSender());
      !status.ok()) {
    Discard(**child);
    return status;
  }
  return *child;
}

absl::StatusOr<v1::ForkChildResponse> Agent::Impl::ForkChild(const v1::ForkChildRequest& request,
                                                             const Caller& caller) {
  if (absl::Status status = ValidateParent(request.parent(), id()); !status.ok()) return status;
  if (absl::Status status = ValidateRequestId(request.request_id()); !status.ok()) return status;
  if (absl::Status status = ValidateClient(caller.client); !status.ok()) return status;

  ForgetOldForks();
  const std::string key = fmt::format("{}\n{}", caller.principal, request.request_id());
  const uint64_t fingerprint = Fingerprint(Canonical(request.spec()), seed_);
  if (const auto found = forks_.find(key); found != forks_.end()) {
    if (found->second.fingerprint != fingerprint) {
      return ipc::MakeError(ipc::Reason::kRequestIdReused,
                            fmt::format("The request id {} was used for another fork. Use a fresh "
                                        "one.",
                                        request.request_id()),
                            {{"request_id", request.request_id()}});
    }
    v1::ForkChildResponse response = found->second.response;
    if (const absl::StatusOr<RecordedChild*> child = Find(response.child().name()); child.ok()) {
      *response.mutable_child() = (*child)->ToProto();
    }
    return response;
  }

  const v1::ChildSpec& spec = request.spec();
  absl::StatusOr<ipc::ForkOptions> options = ForkOptionsOf(spec, options_.limits, environment_);
  if (!options.ok()) return options.status();
  const absl::StatusOr<std::chrono::milliseconds> timeout = TimeoutOf(spec);
  if (!timeout.ok()) return timeout.status();
  const absl::StatusOr<ChildLimits> limits = ChildLimitsOf(spec.limits(), options_.limits);
  if (!limits.ok()) return limits.status();

  const absl::StatusOr<RecordedChild*> child =
      Make({.display_name = spec.display_name(), .labels = ToMap(spec.labels())}, spec.program(),
           {spec.args().begin(), spec.args().end()}, *limits,
           ipc::ChildProcess::MemoryLimits(*options), /*of_file=*/options_.keeper != nullptr,
           /*listener=*/nullptr);
  if (!child.ok()) return child.status();
  const bool remembered = !request.request_id().empty() && options_.limits.fork_request_ids_max > 0;
  const int64_t sequence = log_.next_sequence() - 1;
  if (const auto started =
          Start(**child, *std::move(options), *timeout, SenderOf(caller),
                {.key = remembered ? key : "", .fingerprint = fingerprint, .sequence = sequence});
      !started.ok()) {
    return started.status();
  }
  if (remembered) return Remember(key, fingerprint, sequence, **child, Clock::now());
  return ForkResponse(**child, sequence);
}

v1::ForkChildResponse Agent::Impl::ForkResponse(const RecordedChild& child,
                                                int64_t sequence) const {
  v1::ForkChildResponse response;
  response.mutable_cursor()->set_agent(id());
  response.mutable_cursor()->set_epoch(log_.epoch());
  response.mutable_cursor()->set_sequence(sequence);
  *response.mutable_child() = child.ToProto();
  return response;
}

const v1::ForkChildResponse& Agent::Impl::Remember(const std::string& key, uint64_t fingerprint,
                                                   int64_t sequence, const RecordedChild& child,
                                                   Clock::time_point when) {
  forks_by_age_.emplace_back(when, key);
  RememberedFork& fork = forks_[key];
  fork = {.fingerprint = fingerprint, .response = ForkResponse(child, sequence)};
  return fork.response;
}

void Agent::Impl::ForgetOldForks() {
  const auto oldest = Clock::now() - options_.limits.request_id_kept_ms_max;
  while (!forks_by_age_.empty() && (forks_by_age_.front().first < oldest ||
                                    forks_by_age_.size() > options_.limits.fork_request_ids_max)) {
    forks_.erase(forks_by_age_.front().second);
    forks_by_age_.pop_front();
  }
}

RecordedChild* Agent::Impl::FindById(const std::string& id) const {
  const auto number = by_id_.find(id);
  return number == by_id_.end() ? nullptr : children_.at(number->second).get();
}

absl::StatusOr<RecordedChild*> Agent::Impl::Find(std::string_view name) const {
  const absl::StatusOr<std::string> part = ParseChildName(name, id(), Wildcard::kRefused);
  if (!part.ok()) return part.status();
  return FindPart(*part);
}

absl::StatusOr<RecordedChild*> Agent::Impl::FindPart(const std::string& part) const {
  if (RecordedChild* child = FindById(part); child != nullptr) return child;

  std::vector<RecordedChild*> running;
  RecordedChild* latest = nullptr;
  const auto [begin, end] = by_display_name_.equal_range(part);
  for (auto entry = begin; entry != end; ++entry) {
    latest = children_.at(entry->second).get();
    if (latest->running()) running.push_back(latest);
  }
  if (running.size() == 1) return running[0];
  if (running.empty() && latest != nullptr) return latest;
  if (running.empty()) {
    return ipc::MakeError(ipc::Reason::kChildNotFound,
                          fmt::format("No child is called {}. List the children to see which there "
                                      "are; ended ones are known for a while only.",
                                      part),
                          {{"name", part}});
  }
  std::string candidates;
  for (size_t i = 0; i < std::min(running.size(), kCandidatesShown); ++i) {
    candidates += fmt::format("{}{}", i == 0 ? "" : ",", running[i]->name());
  }
  return ipc::MakeError(
      ipc::Reason::kChildAmbiguous,
      fmt::format("{} children are called {}. Name one by its id: {}{}", running.size(), part,
                  candidates, running.size() > kCandidatesShown ? "..." : ""),
      {{"candidates", candidates}, {"name", part}});
}

absl::StatusOr<Agent::Impl::Selection> Agent::Impl::Select(const v1::ChildFilter& filter) const {
  if (static_cast<size_t>(filter.children_size()) > kFilterNamesMax) {
    return InvalidField("filter.children",
                        fmt::format("has {} names; at most {} are allowed. Use labels, or observe "
                                    "all.",
                                    filter.children_size(), kFilterNamesMax));
  }
  Selection selection{.all = filter.children().empty(), .labels = ToMap(filter.labels())};
  if (absl::Status status = ValidateLabels(selection.labels, "filter.labels"); !status.ok()) {
    return status;
  }
  // Each name once: to find one may cost as much as there are children of that name.
  absl::flat_hash_set<std::string> parts;
  for (const std::string& name : filter.children()) {
    absl::StatusOr<std::string> part = ParseChildName(name, id(), Wildcard::kAccepted);
    if (!part.ok()) return part.status();
    if (*part == "-") {
      selection.all = true;
    } else if (parts.insert(*part).second) {
      const absl::StatusOr<RecordedChild*> child = FindPart(*part);
      if (!child.ok()) return child.status();
      selection.named.insert(*child);
    }
  }
  if (!filter.states().empty()) selection.states = 0;
  for (const int state : filter.states()) {
    if (state == v1::Child::STATE_UNSPECIFIED || !v1::Child::State_IsValid(state)) {
      return InvalidField("filter.states",
                          fmt::format("holds {}, which is no state of a child.", state));
    }
    selection.states |= 1u << state;
  }
  return selection;
}

absl::StatusOr<v1::ListChildrenResponse> Agent::Impl::ListChildren(
    const v1::ListChildrenRequest& request) {
  if (absl::Status status = ValidateParent(request.parent(), id()); !status.ok()) return status;
  if (request.page_size() < 0 || request.page_size() > kPageSizeMax) {
    return InvalidField("page_size", fmt::format("is {}; it must be at most {}, or 0 for {}.",
                                                 request.page_size(), kPageSizeMax, kPageSize));
  }
  const int page_size = request.page_size() == 0 ? kPageSize : request.page_size();
  const absl::StatusOr<Selection> selection = Select(request.filter());
  if (!selection.ok()) return selection.status();

  v1::ListChildrenRequest query = request;
  query.clear_page_token();
  const std::string query_bytes = Canonical(query);
  PagePlace place{.after = 0, .sequence = log_.head()};
  if (!request.page_token().empty()) {
    const auto parsed = PagePlace::Parse(request.page_token(), query_bytes, seed_);
    if (!parsed.ok()) return parsed.status();
    place = *parsed;
  }

  v1::ListChildrenResponse response;
  response.mutable_cursor()->set_agent(id());
  response.mutable_cursor()->set_epoch(log_.epoch());
  response.mutable_cursor()->set_sequence(place.sequence);
  size_t page_bytes = 0;
  for (auto entry = children_.upper_bound(place.after); entry != children_.end(); ++entry) {
    if (!selection->Has(*entry->second)) continue;
    if (response.children_size() == page_size || page_bytes >= kPageBytesMax) {
      response.set_next_page_token(place.Token(query_bytes, seed_));
      break;
    }
    *response.add_children() = entry->second->ToProto();
    page_bytes += response.children(response.children_size() - 1).ByteSizeLong();
    place.after = entry->first;
  }
  return response;
}

absl::StatusOr<std::unique_ptr<Observation>> Agent::Impl::Observe(
    const v1::ObserveRequest& request) {
  if (absl::Status status = ValidateParent(request.parent(), id()); !status.ok()) return status;
  if (absl::Status status = ValidateClient(request.client()); !status.ok()) return status;
  if (!request.filter().states().empty()) {
    return InvalidField("filter.states",
                        "is for ListChildren only; an observation follows a child "
                        "through all its states.");
  }
  const absl::StatusOr<Selection> selection = Select(request.filter());
  if (!selection.ok()) return selection.status();
  absl::StatusOr<ObservationSpec> spec =
      ObservationSpec::Parse(request.observation(), !selection->all);
  if (!spec.ok()) return spec.status();
  ObservationPlan plan;
  if (!selection->all) plan.children.emplace();
  plan.labels = selection->labels;
  plan.spec = *std::move(spec);

  // With the snapshot, in pieces.
  const size_t piece_bytes_max = plan.spec.batch_bytes_max();
  v1::ObserveResponse piece;
  size_t piece_bytes = 0;
  const auto give_piece = [&] {
    if (piece.has_snapshot()) plan.snapshot.push_back(piece.SerializeAsString());
    piece.Clear();
    piece_bytes = 0;
  };
  for (const auto& [number, child] : children_) {
    if (!selection->Has(*child)) continue;
    if (plan.children) plan.children->push_back(child->log());
    v1::Child description = child->ToProto();
    constexpr size_t kFraming = 32;
    const size_t bytes = description.ByteSizeLong() + kFraming;
    if (piece_bytes + bytes > piece_bytes_max) give_piece();
    *piece.mutable_snapshot()->add_children() = std::move(description);
    piece_bytes += bytes;
  }
  give_piece();
  return log_.Observe(std::move(plan));
}

v1::Agent Agent::Impl::ToProto() const {
  using std::chrono::microseconds;
  v1::Agent agent;
  agent.set_name(fmt::format("agents/{}", id()));
  agent.set_version(std::string(ipc::kVersion));
  agent.set_pid(getpid());
  agent.set_keeper_pid(lineage_.keeper_pid);
  agent.set_spare_pid(lineage_.spare_pid);
  agent.set_incarnation(lineage_.incarnation);
  agent.set_degraded(lineage_.degraded);
  *agent.mutable_start_time() = google::protobuf::util::TimeUtil::MicrosecondsToTimestamp(
      std::chrono::duration_cast<microseconds>(start_time_.time_since_epoch()).count());
  agent.set_epoch(log_.epoch());
  agent.set_head(log_.head());
  *agent.mutable_limits() = agent::ToProto(options_.limits);
  agent.set_observers(static_cast<int32_t>(log_.observers()));
  agent.set_children(static_cast<int32_t>(children_.size()));
  agent.set_running_children(
      static_cast<int32_t>(std::count_if(children_.begin(), children_.end(), [](const auto& entry) {
        return entry.second->running();
      })));
  return agent;
}

void Agent::Impl::OnEnding() {
  if (stopping_) stop_task_.Schedule();
}

void Agent::Impl::OnClosed(RecordedChild& child) {
  ended_.emplace_back(Clock::now(), by_id_.at(child.id()));
  forget_task_.Schedule();
  if (stopping_) stop_task_.Schedule();
}

void Agent::Impl::ForgetEnded() {
  const Limits& limits = options_.limits;
  const auto now = Clock::now();
  while (!ended_.empty() && (ended_.size() > limits.ended_children_max ||
                             ended_.front().first + limits.ended_child_kept_ms_max <= now)) {
    const int64_t number = ended_.front().second;
    ended_.pop_front();
    Discard(*children_.at(number));
  }
  if (ended_.empty()) return;
  const auto wait = ended_.front().first + limits.ended_child_kept_ms_max - now;
  forget_timer_.Start(
      std::chrono::ceil<std::chrono::milliseconds>(wait), [this] { ForgetEnded(); },
      /*referenced=*/false);
}

void Agent::Impl::Stop(StopOptions options, absl::AnyInvocable<void()> done) {
  if (stopped_) return done();
  stop_done_.push_back(std::move(done));
  if (std::exchange(stopping_, true)) return Hurry(options);
  stop_options_ = options;
  log_.EndHolds();
  Disconnect();
}

void Agent::Impl::Hurry(StopOptions options) {
  const auto shorten = [this](Phase phase, std::chrono::milliseconds& limit,
                              std::chrono::milliseconds asked, void (Impl::*next)()) {
    if (asked >= limit) return;
    limit = asked;
    if (phase == stop_phase_) stop_timer_.Start(limit, [this, next] { (this->*next)(); });
  };
  shorten(Phase::kDisconnect, stop_options_.disconnect_ms_max, options.disconnect_ms_max,
          &Impl::CloseChannels);
  shorten(Phase::kTerminate, stop_options_.terminate_ms_max, options.terminate_ms_max,
          &Impl::SendKill);
  shorten(Phase::kKill, stop_options_.kill_ms_max, options.kill_ms_max, &Impl::FinishStop);
}

bool Agent::Impl::AnyRunning() const {
  return std::any_of(children_.begin(), children_.end(),
                     [](const auto& entry) { return entry.second->running(); });
}

bool Agent::Impl::AnyOpenChannel() const {
  return std::any_of(children_.begin(), children_.end(),
                     [](const auto& entry) { return entry.second->has_open_channel(); });
}

void Agent::Impl::Disconnect() {
  for (const auto& [number, child] : children_) {
    child->RefuseWaiting(StoppingError());
    if (!child->has_open_channel()) continue;
    child->Disconnect(ipc::Channel::Mode::kFlush, v1::Disconnected::BY_AGENT, OwnSender(), {});
  }
  stop_timer_.Start(
      AnyOpenChannel() ? stop_options_.disconnect_ms_max : std::chrono::milliseconds(0),
      [this] { CloseChannels(); });
}

// `disconnected` comes before any signal: the next phase waits until each is recorded.
void Agent::Impl::CloseChannels() {
  stop_phase_ = Phase::kClose;
  if (!AnyOpenChannel()) return SendTerm();
  for (const auto& [number, child] : children_) {
    if (!child->has_open_channel()) continue;
    child->Disconnect(ipc::Channel::Mode::kClose, v1::Disconnected::BY_AGENT, OwnSender(), {});
  }
}

// One that has just ended needs no signal.
void Agent::Impl::SendTerm() {
  if (!AnyRunning()) return SendKill();
  for (const auto& [number, child] : children_) {
    if (child->running()) (void)child->Signal(SIGTERM, OwnSender());
  }
  stop_phase_ = Phase::kTerminate;
  stop_timer_.Start(stop_options_.terminate_ms_max, [this] { SendKill(); });
}

void Agent::Impl::SendKill() {
  stop_phase_ = Phase::kKill;
  if (ended_.size() == children_.size()) return FinishStop();
  for (const auto& [number, child] : children_) {
    if (child->running()) (void)child->KillGroup(OwnSender());
  }
  stop_timer_.Start(stop_options_.kill_ms_max, [this] { FinishStop(); });
}

void Agent::Impl::HastenStop() {
  if (ended_.size() == children_.size()) return FinishStop();
  if (stop_phase_ == Phase::kKill) return;
  if (!AnyRunning()) return SendKill();
  if (stop_phase_ == Phase::kClose && !AnyOpenChannel()) SendTerm();
}

void Agent::Impl::FinishStop() {
  if (std::exchange(stopped_, true)) return;
  stop_timer_.Cancel();
  log_.Close();
  for (absl::AnyInvocable<void()>& done : std::exchange(stop_done_, {})) done();
}

absl::StatusOr<std::unique_ptr<Agent>> Agent::Create(ipc::EventLoop& loop, Options options) {
  if (options.id.empty()) options.id = IdFromHost(HostName());
  if (!IsId(options.id)) {
    return InvalidField("id",
                        "must be 1 to 63 characters of a-z, 0-9 and `-`, and not begin with "
                        "`-`.");
  }
  if (absl::Status status = ValidateLimits(options.limits); !status.ok()) return status;
  return std::unique_ptr<Agent>(new Agent(std::make_shared<Impl>(loop, std::move(options))));
}

Agent::Agent(std::shared_ptr<Impl> impl) : impl_(std::move(impl)) {}
Agent::~Agent() = default;

const std::string& Agent::id() const { return impl_->id(); }

void Agent::SetLineage(Lineage lineage) { impl_->PostLineage(lineage); }

absl::StatusOr<Child*> Agent::Fork(ipc::ForkOptions options, Description description,
                                   Child::Listener* listener) {
  return impl_->Fork(std::move(options), std::move(description), listener);
}

std::vector<absl::Status> Agent::Recover(std::vector<FoundChild> children) {
  return impl_->Recover(std::move(children));
}

absl::StatusOr<Child*> Agent::Adopt(int socket, pid_t pid, ipc::Dialect dialect,
                                    Description description, Child::Listener* listener) {
  return impl_->Adopt(socket, pid, dialect, std::move(description), listener);
}

void Agent::ForkChild(v1::ForkChildRequest request, Caller caller,
                      Done<v1::ForkChildResponse> done) {
  impl_->Post(std::move(done), [request = std::move(request), caller = std::move(caller)](
                                   Impl& impl, Answer<v1::ForkChildResponse> answer) {
    answer(impl.ForkChild(request, caller));
  });
}

void Agent::GetChild(v1::GetChildRequest request, Done<v1::GetChildResponse> done) {
  impl_->Post(std::move(done),
              [request = std::move(request)](Impl& impl, Answer<v1::GetChildResponse> answer) {
                const absl::StatusOr<RecordedChild*> child = impl.Find(request.name());
                if (!child.ok()) return answer(child.status());
                v1::GetChildResponse response;
                *response.mutable_child() = (*child)->ToProto();
                answer(std::move(response));
              });
}

void Agent::ListChildren(v1::ListChildrenRequest request, Done<v1::ListChildrenResponse> done) {
  impl_->Post(std::move(done),
              [request = std::move(request)](Impl& impl, Answer<v1::ListChildrenResponse> answer) {
                answer(impl.ListChildren(request));
              });
}

void Agent::Disconnect(v1::DisconnectRequest request, Caller caller,
                       Done<v1::DisconnectResponse> done) {
  impl_->Post(std::move(done), [request = std::move(request), caller = std::move(caller)](
                                   Impl& impl, Answer<v1::DisconnectResponse> answer) {
    if (absl::Status status = ValidateClient(caller.client); !status.ok()) return answer(status);
    ipc::Channel::Mode mode = ipc::Channel::Mode::kFlush;
    switch (request.mode()) {
      case v1::DISCONNECT_MODE_UNSPECIFIED:
      case v1::DISCONNECT_MODE_FLUSH:
        break;
      case v1::DISCONNECT_MODE_NOW:
        mode = ipc::Channel::Mode::kNow;
        break;
      default:
        return answer(InvalidField("mode", fmt::format("is {}; it must be FLUSH (1) or NOW (2).",
                                                       static_cast<int>(request.mode()))));
    }
    const absl::StatusOr<RecordedChild*> child = impl.Find(request.child());
    if (!child.ok()) return answer(child.status());
    (*child)->Disconnect(mode, v1::Disconnected::BY_CALLER, SenderOf(caller), std::move(answer));
  });
}

void Agent::SignalChild(v1::SignalChildRequest request, Caller caller,
                        Done<v1::SignalChildResponse> done) {
  impl_->Post(std::move(done), [request = std::move(request), caller = std::move(caller)](
                                   Impl& impl, Answer<v1::SignalChildResponse> answer) {
    if (absl::Status status = ValidateClient(caller.client); !status.ok()) return answer(status);
    if (!IsSignal(request.signal())) {
      return answer(InvalidField("signal", fmt::format("is {}, which is no signal; give a number "
                                                       "from 1 to {}.",
                                                       request.signal(), SIGRTMAX)));
    }
    const absl::StatusOr<RecordedChild*> child = impl.Find(request.child());
    if (!child.ok()) return answer(child.status());
    const absl::StatusOr<int64_t> sequence = (*child)->Signal(request.signal(), SenderOf(caller));
    if (!sequence.ok()) return answer(sequence.status());
    v1::SignalChildResponse response;
    response.set_sequence(*sequence);
    answer(std::move(response));
  });
}

void Agent::GetAgent(v1::GetAgentRequest request, Done<v1::GetAgentResponse> done) {
  impl_->Post(std::move(done), [request = std::move(request)](Impl& impl,
                                                              Answer<v1::GetAgentResponse> answer) {
    if (absl::Status status = ValidateAgentName(request.name(), impl.id()); !status.ok()) {
      return answer(status);
    }
    v1::GetAgentResponse response;
    *response.mutable_agent() = impl.ToProto();
    answer(std::move(response));
  });
}

namespace {

absl::Status ValidateSend(const v1::SendMessageRequest& request, const Caller& caller) {
  if (absl::Status status = ValidateRequestId(request.request_id()); !status.ok()) return status;
  if (absl::Status status = ValidateClient(caller.client); !status.ok()) return status;
  if (request.repeat() && request.request_id().empty()) {
    return InvalidField("repeat", "needs the `request_id` of what is repeated.");
  }
  if (!v1::SendOutcome_IsValid(request.answer_when())) {
    return InvalidField("answer_when", fmt::format("is {}; it must be WRITTEN (1) or ACCEPTED (2).",
                                                   static_cast<int>(request.answer_when())));
  }
  return absl::OkStatus();
}

}  // namespace

// A message on its way. Its members are the loop's thread's.
class Agent::Sending : public Cancellation, public std::enable_shared_from_this<Sending> {
 public:
  Sending(ipc::EventLoop& loop, std::weak_ptr<Impl> agent) : loop_(loop), agent_(agent) {}

  void Begin(RecordedChild& child, std::shared_ptr<RecordedChild::Call> call) {
    child_ = child.id();
    call_ = std::move(call);
  }

  void Cancel(absl::Status reason) override {
    loop_.Post([self = shared_from_this(), reason = std::move(reason)] {
      const std::shared_ptr<Impl> agent = self->agent_.lock();
      RecordedChild* child = agent == nullptr ? nullptr : agent->FindById(self->child_);
      if (child != nullptr && self->call_ != nullptr) child->Cancel(self->call_, reason);
    });
  }

 private:
  ipc::EventLoop& loop_;
  const std::weak_ptr<Impl> agent_;
  std::string child_;
  std::shared_ptr<RecordedChild::Call> call_;
};

std::shared_ptr<Cancellation> Agent::SendMessage(v1::SendMessageRequest request, Caller caller,
                                                 SendOptions options,
                                                 Done<v1::SendMessageResponse> done) {
  auto sending = std::make_shared<Sending>(impl_->loop(), impl_);
  impl_->Post(std::move(done), [request = std::move(request), caller = std::move(caller),
                                options = std::move(options), sending](
                                   Impl& impl, Answer<v1::SendMessageResponse> answer) mutable {
    if (absl::Status status = ValidateSend(request, caller); !status.ok()) {
      return answer(status);
    }
    const absl::StatusOr<RecordedChild*> child = impl.Find(request.child());
    if (!child.ok()) return answer(child.status());
    sending->Begin(**child, (*child)->SendMessage(std::move(request), SenderOf(caller),
                                                  std::move(options), std::move(answer)));
  });
  return sending;
}

void Agent::Observe(v1::ObserveRequest request, Done<std::unique_ptr<Observation>> done) {
  impl_->Post(std::move(done), [request = std::move(request)](
                                   Impl& impl, Answer<std::unique_ptr<Observation>> answer) {
    answer(impl.Observe(request));
  });
}

void Agent::Stop(StopOptions options, absl::AnyInvocable<void()> done) {
  impl_->PostStop(options, std::move(done));
}

}  // namespace deka::agent
