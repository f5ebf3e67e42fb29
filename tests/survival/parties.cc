#include "tests/survival/parties.h"

#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>
#include <grpcpp/support/channel_arguments.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <map>
#include <optional>
#include <string_view>
#include <utility>

#include "fmt/format.h"
#include "sdk/cpp/error.h"

namespace deka::storm {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr milliseconds kFullMsMax{1000};
constexpr int64_t kRereadMax = 2000;
constexpr uint64_t kAttachedMax = 400;

std::string Text(const absl::Status& status) {
  return fmt::format("{} {}", ErrorReason(status), std::string(status.message()));
}

// Nobody reads any more, or the child has ended: not of those that wait to be told to stop.
bool IsEnded(std::string_view reason) {
  return reason == "CHILD_EXITED" || reason == "CHANNEL_CLOSED" || reason == "CHANNEL_FAILED";
}

bool IsFull(std::string_view reason) {
  return reason == "QUEUE_FULL" || reason == "HELD_BY_OBSERVER";
}

}  // namespace

// --- Scene ---

Client Scene::Connect(const std::string& name) const {
  absl::StatusOr<Client> client =
      Client::Connect({.target = target,
                       .name = name,
                       .appear_ms_max = seconds(30),
                       .connect_ms_max = seconds(30),
                       .reconnect_ms_max = std::chrono::duration_cast<milliseconds>(kHangs)});
  if (!client.ok()) {
    fmt::print(stderr, "{} cannot connect: {}\n", name, Text(client.status()));
    _exit(2);
  }
  return *std::move(client);
}

v1::ChildSpec Scene::SpecOf(const ChildPlan& plan) const {
  v1::ChildSpec spec;
  spec.set_display_name(plan.key);
  spec.set_program(child_program);
  for (const std::string& argument :
       {plan.account, std::to_string(plan.seed), plan.role, std::to_string(plan.code),
        std::to_string(plan.count), std::to_string(plan.ahead)}) {
    spec.add_args(argument);
  }
  (*spec.mutable_labels())["storm"] = plan.key;
  (*spec.mutable_labels())["group"] = plan.group;
  spec.set_dialect(plan.node ? v1::DIALECT_NODE : v1::DIALECT_DEKA);
  return spec;
}

void Scene::CheckCursor(const std::string& who, const v1::Cursor& cursor) {
  int64_t unset = 0;
  if (epoch.compare_exchange_strong(unset, cursor.epoch()) || unset == cursor.epoch()) return;
  verdict.Violation(
      fmt::format("{} was told epoch {}, before it was {}", who, cursor.epoch(), unset));
}

// --- Watcher ---

Watcher::Watcher(Scene& scene, std::string name, v1::ObserveRequest request,
                 std::function<bool(const Seen&)> fits)
    : scene_(scene),
      name_(std::move(name)),
      request_(std::move(request)),
      fits_(std::move(fits)),
      client_(scene.Connect(name_)) {}

void Watcher::Start() {
  v1::ObserveRequest request = request_;
  // Not `earliest`: that names no gap for what a log has lost already.
  v1::Cursor& first = *request.mutable_observation()->mutable_start()->mutable_after();
  first.set_agent(scene_.agent);
  first.set_epoch(scene_.epoch);
  Observer observer;
  observer.on_attached = [this](const v1::Attached& attached) {
    scene_.CheckCursor(name_, attached.start());
    if (on_attached) on_attached();
    ipc::MutexLock lock(mutex_);
    attached_time_ = Clock::now();
    changed_.NotifyAll();
  };
  observer.on_event = [this](const v1::Event& event) {
    if (on_event) return on_event(event);
    ipc::MutexLock lock(mutex_);
    shown_.push_back({event.sequence(), HashOf(event)});
  };
  observer.on_gap = [this](const v1::Gap& gap) {
    if (on_gap) return on_gap(gap);
    ipc::MutexLock lock(mutex_);
    gaps_.push_back(gap);
  };
  observer.on_resumed = [this](const v1::Cursor& cursor) {
    scene_.CheckCursor(name_, cursor);
    ++scene_.resumes;
  };
  observer.on_end = [this](const absl::Status& status, const v1::Fin& fin) {
    if (!status.ok() || fin.reason() != v1::Fin::REASON_AGENT_STOPPING) {
      scene_.verdict.Violation(fmt::format("the observation of {} ended so: {} {}", name_,
                                           Text(status), fin.ShortDebugString()));
    }
    ipc::MutexLock lock(mutex_);
    ended_ = true;
  };
  absl::StatusOr<Observation> observation = client_.Observe(std::move(request), observer);
  if (!observation.ok()) {
    scene_.verdict.Violation(
        fmt::format("{} cannot observe: {}", name_, Text(observation.status())));
    return;
  }
  observation_ = std::make_unique<Observation>(*std::move(observation));
}

void Watcher::AwaitAttachedSince(Clock::time_point time) {
  const auto deadline = Clock::now() + kHangs;
  ipc::MutexLock lock(mutex_);
  while (observation_ != nullptr && attached_time_ < time) {
    if (changed_.WaitUntil(mutex_, deadline)) continue;
    scene_.verdict.Violation(fmt::format("{} does not observe any more", name_));
    return;
  }
}

void Watcher::Check() {
  if (observation_ == nullptr) return;
  observation_->Wait();
  ipc::MutexLock lock(mutex_);
  if (!ended_) scene_.verdict.Violation(fmt::format("{} was not told the end", name_));
  if (!on_event) scene_.ledger.CheckObserver(name_, shown_, gaps_, fits_);
}

// --- Reread ---

void Reread(Scene& scene) {
  Random random(Mix(scene.seed ^ 0x9e9d));
  const Client client = scene.Connect("reread");
  int seen_kills = 0;
  while (!scene.stopping) {
    const int64_t last = scene.ledger.last();
    if (scene.kills < seen_kills + 3 || last < 10) {
      scene.ledger.AwaitAnything(kFullMsMax);
      continue;
    }
    seen_kills = scene.kills;
    const auto back = static_cast<int64_t>(random.Between(1, 3 * kRereadMax));
    const int64_t after = std::max<int64_t>(0, last - back);
    v1::ObserveRequest request;
    v1::Cursor& cursor = *request.mutable_observation()->mutable_start()->mutable_after();
    cursor.set_epoch(scene.epoch);
    cursor.set_sequence(after);
    request.mutable_observation()->set_events_max(std::min(last - after, kRereadMax));
    std::vector<Shown> shown;
    Observer observer;
    observer.on_event = [&shown](const v1::Event& event) {
      shown.push_back({event.sequence(), HashOf(event)});
    };
    observer.on_gap = [&scene](const v1::Gap& gap) {
      if (scene.small_logs) return;
      scene.verdict.Violation(
          fmt::format("who looked again was told a gap: {}", gap.ShortDebugString()));
    };
    observer.on_end = [&scene](const absl::Status& status, const v1::Fin&) {
      if (!status.ok()) {
        scene.verdict.Violation(fmt::format("looking again failed: {}", Text(status)));
      }
    };
    absl::StatusOr<Observation> observation = client.Observe(std::move(request), observer);
    if (!observation.ok()) {
      scene.verdict.Violation(fmt::format("cannot look again: {}", Text(observation.status())));
      continue;
    }
    observation->Wait();
    // In small logs it may have gone beyond what the witness has been shown.
    if (scene.small_logs) {
      const int64_t now = scene.ledger.last();
      std::erase_if(shown, [now](const Shown& event) { return event.sequence > now; });
    }
    scene.reread += static_cast<int64_t>(shown.size());
    scene.ledger.CheckAgain("who looked again", shown);
  }
}

// --- Sends ---

namespace {

// One message, by its id, until it is clear what became of it. Unset: the child has ended.
std::optional<SendRecord> Send(Scene& scene, const Child& child, const std::string& key,
                               const std::string& body, const Child::SendOptions& options) {
  SendRecord record = {.child = key, .request_id = options.request_id, .body = HashOf(body)};
  const auto deadline = Clock::now() + 2 * kHangs;
  for (;;) {
    const absl::StatusOr<v1::SendMessageResponse> answer = child.Send(body, options);
    if (answer.ok()) {
      const bool written = answer->outcome() == v1::SEND_OUTCOME_WRITTEN;
      record.outcome = written ? Outcome::kWritten : Outcome::kAccepted;
      record.sequence = answer->sequence();
      ++(written ? scene.written : scene.accepted);
      return record;
    }
    const std::string reason = ErrorReason(answer.status());
    if (reason == "OUTCOME_UNKNOWN") {
      ++scene.unknown;
      return record;
    }
    if (reason.starts_with("NOT_SENT_")) {
      record.outcome = Outcome::kNotSent;
      ++scene.not_sent;
      return record;
    }
    if (IsEnded(reason)) return std::nullopt;
    if (!IsFull(reason) || Clock::now() > deadline) {
      scene.verdict.Violation(fmt::format("the send {} to {} failed: {}", options.request_id, key,
                                          Text(answer.status())));
      return record;
    }
    ++scene.refused;
    scene.ledger.AwaitAnything(kFullMsMax);
  }
}

}  // namespace

void SendSingly(Scene& scene, const std::string& name, const std::vector<std::string>& keys,
                size_t bytes_max, bool patient) {
  Random random(Mix(scene.seed ^ HashOf(name)));
  const Client client = scene.Connect(name);
  std::map<std::string, Child> children;
  for (uint64_t number = 1; !scene.stopping; ++number) {
    const std::string& key = keys[random.Below(keys.size())];
    auto child = children.find(key);
    if (child == children.end()) {
      absl::StatusOr<Child> found = client.Find(key);
      if (!found.ok()) {
        scene.verdict.Violation(
            fmt::format("{} does not find {}: {}", name, key, Text(found.status())));
        return;
      }
      child = children.emplace(key, *std::move(found)).first;
    }
    const std::string body = SendOf(name, number, random.Below(bytes_max));
    Child::SendOptions options = {.request_id = fmt::format("{}/{}", name, number)};
    if (!patient) {
      if (random.Below(3) == 0) options.answer_when = v1::SEND_OUTCOME_ACCEPTED;
      if (random.Below(4) == 0) options.timeout = milliseconds(random.Between(1, 300));
    }
    const std::optional<SendRecord> record = Send(scene, child->second, key, body, options);
    if (!record) {
      scene.verdict.Violation(fmt::format("{} has ended, says a send of {}", key, name));
      return;
    }
    scene.ledger.Sent(*record);
    if (record->outcome != Outcome::kWritten || random.Below(8) != 0) continue;
    // The same once more is answered the same.
    ++scene.repeated;
    const std::optional<SendRecord> again =
        Send(scene, child->second, key, body, {.request_id = options.request_id});
    if (!again || again->outcome != Outcome::kWritten || again->sequence != record->sequence) {
      scene.verdict.Violation(fmt::format(
          "the send {} was WRITTEN as event {}; its repeat was answered {} with event {}",
          options.request_id, record->sequence, again ? static_cast<int>(again->outcome) : -1,
          again ? again->sequence : 0));
    }
  }
}

void SendAttached(Scene& scene, const std::string& name, const std::string& key) {
  Random random(Mix(scene.seed ^ HashOf(name)));
  const Client client = scene.Connect(name);
  for (uint64_t number = 0; !scene.stopping;) {
    ipc::Mutex mutex;
    int64_t through = 0;
    std::map<int64_t, absl::Status> failed;
    absl::StatusOr<Attachment> attachment =
        client.Attach(key, {.on_ack =
                                [&](int64_t acknowledged) {
                                  ipc::MutexLock lock(mutex);
                                  through = acknowledged;
                                },
                            .on_failed =
                                [&](int64_t request, const absl::Status& status) {
                                  ipc::MutexLock lock(mutex);
                                  failed[request] = status;
                                }});
    if (!attachment.ok()) {
      scene.verdict.Violation(
          fmt::format("{} cannot attach to {}: {}", name, key, Text(attachment.status())));
      return;
    }
    std::vector<SendRecord> sent;
    for (uint64_t count = random.Between(1, kAttachedMax); count > 0; --count) {
      const std::string body = SendOf(name, ++number, random.Below(400));
      if (const absl::StatusOr<int64_t> answer = attachment->Send(body); !answer.ok()) {
        scene.verdict.Violation(
            fmt::format("{} cannot send to {}: {}", name, key, Text(answer.status())));
        break;
      }
      sent.push_back({.child = key, .body = HashOf(body)});
    }
    attachment->Finish();
    const absl::Status end = attachment->Wait();
    ipc::MutexLock lock(mutex);
    if (!end.ok() || through != static_cast<int64_t>(sent.size())) {
      scene.verdict.Violation(
          fmt::format("the attachment of {} to {} ended so, with {} of {} "
                      "answered: {}",
                      name, key, through, sent.size(), Text(end)));
    }
    for (size_t i = 0; i < sent.size(); ++i) {
      const auto number_of_request = static_cast<int64_t>(i) + 1;
      const auto failure = failed.find(number_of_request);
      if (number_of_request > through) {
        sent[i].outcome = Outcome::kUnknown;
      } else if (failure == failed.end()) {
        sent[i].outcome = Outcome::kWritten;
        ++scene.attached;
      } else if (ErrorReason(failure->second) == "OUTCOME_UNKNOWN") {
        sent[i].outcome = Outcome::kUnknown;
        ++scene.unknown;
      } else {
        scene.verdict.Violation(fmt::format("request {} of the attachment of {} to {} failed: {}",
                                            number_of_request, name, key, Text(failure->second)));
      }
      scene.ledger.Sent(sent[i]);
    }
  }
}

void Stop(Scene& scene, const Client& client, const std::string& key) {
  const absl::StatusOr<Child> child = client.Find(key);
  if (!child.ok()) {
    scene.verdict.Violation(fmt::format("there is no {}: {}", key, Text(child.status())));
    return;
  }
  // A stop whose outcome is unknown may have got lost. Who has read one is not there for another.
  for (int attempt = 0; attempt < 100; ++attempt) {
    const std::optional<SendRecord> record = Send(scene, *child, key, std::string(kStop),
                                                  {.request_id = fmt::format("stop/{}", attempt)});
    if (!record || record->outcome == Outcome::kWritten) return;
  }
  scene.verdict.Violation(fmt::format("{} could not be told to stop", key));
}

// --- Fork ---

namespace {

// Forks by a request id of its own: again when the answer is lost, and at times when it is not.
class Forker {
 public:
  explicit Forker(Scene& scene) : scene_(scene) {
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
    arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 100);
    channel_ =
        grpc::CreateCustomChannel(scene.target, grpc::InsecureChannelCredentials(), arguments);
    stub_ = v1::BridgeService::NewStub(channel_);
  }

  // `again`: once more so many times.
  bool Fork(const ChildPlan& plan, uint64_t again) {
    v1::ForkChildRequest request;
    request.set_parent("agents/-");
    request.set_request_id(plan.key);
    *request.mutable_spec() = scene_.SpecOf(plan);
    const auto deadline = Clock::now() + kHangs;
    while (Clock::now() < deadline) {
      channel_->WaitForConnected(std::chrono::system_clock::now() + seconds(5));
      grpc::ClientContext context;
      v1::ForkChildResponse response;
      const grpc::Status status = stub_->ForkChild(&context, request, &response);
      if (status.ok()) {
        scene_.ledger.Forked(plan.key, response.child().name());
        if (again-- == 0) return true;
        ++scene_.repeated_forks;
        continue;
      }
      if (!status.error_details().empty()) {
        scene_.verdict.Violation(fmt::format("the fork {} failed: {} {}", plan.key,
                                             static_cast<int>(status.error_code()),
                                             status.error_message()));
        return false;
      }
    }
    scene_.verdict.Violation(fmt::format("the fork {} was not answered", plan.key));
    return false;
  }

 private:
  Scene& scene_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::BridgeService::Stub> stub_;
};

void EndKilled(Scene& scene, const Child& child, const std::string& key) {
  for (;;) {
    const absl::Status status = child.Kill(SIGKILL);
    if (status.ok() || ErrorReason(status) == "CHILD_EXITED") return;
    if (ErrorReason(status) == "OUTCOME_UNKNOWN") continue;
    scene.verdict.Violation(fmt::format("cannot kill {}: {}", key, Text(status)));
    return;
  }
}

}  // namespace

void Fork(Scene& scene, const std::string& name) {
  Random random(Mix(scene.seed ^ HashOf(name)));
  const Client client = scene.Connect(name);
  Forker forker(scene);
  for (uint64_t number = 1; !scene.stopping; ++number) {
    ChildPlan draft = {.key = fmt::format("{}-{}", name, number),
                       .group = "b",
                       .role = "burst",
                       .seed = random.Next(),
                       .code = static_cast<int>(random.Between(1, 90)),
                       .count = random.Between(0, 600),
                       .node = random.Below(3) == 0};
    const uint64_t ending = random.Below(4);
    if (ending == 0) draft.end = End::kKilled;
    if (ending == 1) draft.end = End::kDisconnected;
    if (ending <= 1) draft.role = "echo";
    draft.account = fmt::format("{}/{}.account", scene.directory, draft.key);
    const ChildPlan& plan = scene.ledger.Plan(std::move(draft));
    if (random.Below(2) == 0) {
      if (!forker.Fork(plan, random.Below(3))) return;
    } else if (const absl::StatusOr<Child> child = client.Fork(scene.SpecOf(plan)); child.ok()) {
      scene.ledger.Forked(plan.key, child->name());
    } else {
      scene.verdict.Violation(
          fmt::format("the fork {} failed: {}", plan.key, Text(child.status())));
      return;
    }
    ++scene.forks;
    const absl::StatusOr<Child> child = client.Find(plan.key);
    if (!child.ok()) {
      scene.verdict.Violation(fmt::format("there is no {}: {}", plan.key, Text(child.status())));
      return;
    }
    // To a burst: it ends with what it has not read.
    for (uint64_t sends = random.Below(6), i = 1; i <= sends; ++i) {
      const std::string from = fmt::format("{}/{}", plan.key, i);
      const std::optional<SendRecord> record =
          Send(scene, *child, plan.key, SendOf(from, i, random.Below(2000)), {.request_id = from});
      if (!record) break;
      scene.ledger.Sent(*record);
    }
    if (plan.end == End::kKilled) EndKilled(scene, *child, plan.key);
    if (plan.end == End::kDisconnected) {
      if (const absl::Status status = child->Disconnect(); !status.ok()) {
        scene.verdict.Violation(fmt::format("cannot disconnect {}: {}", plan.key, Text(status)));
      }
    }
    if (!scene.ledger.AwaitClosed(plan.key)) {
      scene.verdict.Violation(fmt::format("{} does not end", plan.key));
      return;
    }
    if (const absl::StatusOr<v1::ExitStatus> status = child->Wait();
        !status.ok() ||
        (plan.end == End::kKilled ? status->signal() != SIGKILL : status->code() != plan.code)) {
      scene.verdict.Violation(
          fmt::format("waiting for {} was answered: {}", plan.key,
                      status.ok() ? status->ShortDebugString() : Text(status.status())));
    }
  }
}

}  // namespace deka::storm
