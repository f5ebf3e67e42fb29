#include "tests/validator/history.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <iterator>
#include <memory>
#include <string_view>
#include <thread>

#include "fmt/format.h"
#include "tests/validator/account.h"
#include "tests/validator/agent_process.h"
#include "tests/validator/directory.h"
#include "tests/validator/parties.h"

namespace deka::validator {
namespace {

// An agent shows 64 bytes of a bad frame.
constexpr size_t kBadFrameBytes = 64;

// One entry of a child's account, as a record.
Record ToRecord(const std::string& child, const AccountEntry& entry, std::string_view bytes,
                bool surely) {
  Record record{.party = child, .what = surely ? What::kWrote : What::kMayHaveWritten};
  auto event = std::make_shared<v1::Event>();
  switch (entry.deed) {
    case Deed::kMessage:
      event->mutable_from_child()->set_size_bytes(static_cast<int64_t>(bytes.size()));
      event->set_json(std::string(bytes));
      break;
    case Deed::kBadFrame:
    case Deed::kHalfFrame:
      event->mutable_error()->set_size_bytes(static_cast<int64_t>(bytes.size()));
      event->set_raw(std::string(bytes.substr(0, kBadFrameBytes)));
      break;
    case Deed::kStdout:
    case Deed::kStderr:
      event->mutable_output()->set_size_bytes(static_cast<int64_t>(bytes.size()));
      event->mutable_output()->set_stream(entry.deed == Deed::kStdout ? v1::Output::STREAM_STDOUT
                                                                      : v1::Output::STREAM_STDERR);
      event->set_raw(std::string(bytes));
      break;
    case Deed::kRead:
      record.what = What::kRead;
      event->mutable_to_child()->set_size_bytes(static_cast<int64_t>(bytes.size()));
      event->set_json(std::string(bytes));
      break;
    case Deed::kReadEnd:
      record.what = What::kReadEnd;
      event->mutable_disconnected();
      event->set_raw(std::string(bytes));
      break;
    case Deed::kSignal: {
      record.what = What::kGotSignal;
      auto signalled = std::make_shared<v1::Signalled>();
      signalled->set_signal(static_cast<int32_t>(entry.value));
      record.body = std::move(signalled);
      return record;
    }
    case Deed::kForked:
      record.what = What::kForked;
      return record;
    case Deed::kExits:
    case Deed::kKilled: {
      record.what = What::kEnds;
      auto status = std::make_shared<v1::ExitStatus>();
      if (entry.deed == Deed::kExits) {
        status->set_code(static_cast<int32_t>(entry.value));
      } else {
        status->set_signal(static_cast<int32_t>(entry.value));
      }
      record.body = std::move(status);
      return record;
    }
  }
  record.body = std::move(event);
  return record;
}

// What a child has told of itself; it has ended.
void AppendAccount(const std::string& path, const std::string& child, Recording& recording) {
  const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) return;  // it ended before it began
  void* const map = mmap(nullptr, kAccountBytes, PROT_READ, MAP_SHARED, file, 0);
  const bool whole = lseek(file, 0, SEEK_END) == static_cast<off_t>(kAccountBytes);
  close(file);
  if (map == MAP_FAILED) return;
  const char* const base = static_cast<const char*>(map);
  const auto& header = *reinterpret_cast<const AccountHeader*>(base);
  const uint64_t used = whole ? header.used.load() : 0;
  for (uint64_t at = 0; at < used;) {
    const char* const place = base + sizeof(AccountHeader) + at;
    AccountEntry entry;
    std::copy_n(place, sizeof(entry), reinterpret_cast<char*>(&entry));
    const Sink sink = entry.deed == Deed::kStdout   ? Sink::kStdout
                      : entry.deed == Deed::kStderr ? Sink::kStderr
                                                    : Sink::kChannel;
    const bool surely = entry.end <= header.written[static_cast<size_t>(sink)].load();
    recording.push_back(ToRecord(child, entry, {place + sizeof(entry), entry.bytes}, surely));
    at += sizeof(entry) + (entry.bytes + 7) / 8 * 8;
  }
  munmap(map, kAccountBytes);
}

// Until a child has come to this state, or is forgotten. False if it hangs.
bool AwaitState(int number, v1::Child::State state, Scene& scene, Party& party) {
  const std::optional<v1::Child> known = scene.Known(number);
  if (!known) return false;
  const auto deadline = std::chrono::steady_clock::now() + kHangs;
  while (!scene.AwaitState(number, state)) {
    const std::optional<v1::ListChildrenResponse> list = party.List();
    if (!list || std::chrono::steady_clock::now() > deadline) return false;
    const auto found =
        std::find_if(list->children().begin(), list->children().end(),
                     [&](const v1::Child& child) { return child.name() == known->name(); });
    if (found == list->children().end() || found->state() >= state) return true;
  }
  return true;
}

// Ends a child as the plan says.
void End(int number, Scene& scene, Party& party, std::vector<std::string>& troubles) {
  const std::optional<v1::Child> known = scene.Known(number);
  if (!known) return;
  const std::string& child = known->name();
  switch (scene.plan.children[static_cast<size_t>(number)].end) {
    case ChildPlan::End::kFlush:
      return party.Disconnect(child, v1::DISCONNECT_MODE_FLUSH);
    case ChildPlan::End::kNow:
      return party.Disconnect(child, v1::DISCONNECT_MODE_NOW);
    case ChildPlan::End::kTerminate:
      return party.Signal(child, SIGTERM);
    case ChildPlan::End::kKill:
      return party.Signal(child, SIGKILL);
    case ChildPlan::End::kWake:
      party.Signal(child, SIGUSR1);
      return party.Disconnect(child, v1::DISCONNECT_MODE_FLUSH);
    case ChildPlan::End::kRelease: {
      if (!AwaitState(number, v1::Child::STATE_EXITED, scene, party)) {
        troubles.push_back(fmt::format("{} does not exit", known->display_name()));
      }
      v1::SendMessageRequest request;
      request.set_child(child);
      request.set_json(R"("to who holds the channel")");
      request.set_client(party.name());
      party.Send(request);
      return party.Disconnect(child, v1::DISCONNECT_MODE_FLUSH);
    }
    case ChildPlan::End::kStop:
      return;
  }
}

// The parties, but for the agent and its children.
class Cast {
 public:
  Cast(Scene& scene, std::vector<std::string>& troubles)
      : scene_(scene), troubles_(troubles), main_(scene, "main"), witness_(scene, "witness") {
    for (const SenderPlan& plan : scene.plan.senders) {
      senders_.push_back(
          std::make_unique<Sender>(scene, fmt::format("sender-{}", senders_.size()), plan));
    }
    for (const ObserverPlan& plan : scene.plan.observers) {
      observers_.push_back(
          std::make_unique<Observer>(scene, fmt::format("observer-{}", observers_.size()), plan));
    }
  }

  // Returns when the agent is to stop.
  void Play();
  // When the agent has stopped.
  Recording Leave();

 private:
  void Witness();
  void EndChildren();
  // Sees everything that is still in the logs.
  void LookBack();
  // Sees nothing, for as long as others do who go on watching.
  void Linger();
  void Trouble(std::string text) { troubles_.push_back(std::move(text)); }

  Scene& scene_;
  std::vector<std::string>& troubles_;
  Party main_;
  Party witness_;
  std::vector<std::unique_ptr<Sender>> senders_;
  std::vector<std::unique_ptr<Observer>> observers_;
  std::vector<std::thread> watching_;
};

void Cast::Play() {
  const std::optional<v1::ListChildrenResponse> nobody = main_.List();
  if (!nobody) return Trouble("the agent does not answer");
  scene_.beginning = nobody->cursor();
  watching_.emplace_back([this] { Witness(); });
  const int children = static_cast<int>(scene_.plan.children.size());
  for (int i = 0; i < children; ++i) {
    if (!scene_.plan.children[static_cast<size_t>(i)].late) main_.Fork(i);
  }
  for (const std::unique_ptr<Observer>& observer : observers_) {
    watching_.emplace_back([&observer] {
      observer->Run();
      observer->HangUp();
    });
  }
  std::vector<std::thread> sending;
  for (const std::unique_ptr<Sender>& sender : senders_) {
    sending.emplace_back([&sender] {
      sender->Run();
      sender->HangUp();
    });
  }
  for (std::thread& thread : sending) thread.join();
  EndChildren();
  scene_.Played();
  LookBack();
  if (scene_.plan.lingers) Linger();
  main_.HangUp();
  main_.recorder().Add(0, What::kStopping);
  scene_.Stop();
}

void Cast::Witness() {
  v1::ObserveRequest request;
  request.set_parent("agents/-");
  request.set_client(witness_.name());
  *request.mutable_observation()->mutable_start()->mutable_after() = scene_.beginning;
  request.mutable_observation()->mutable_heartbeat_interval()->set_seconds(1);
  witness_.Observe(request, [this](int64_t, const v1::ObserveResponse& response) {
    for (const v1::Event& event : response.batch().events()) scene_.Saw(event);
    return false;
  });
  witness_.HangUp();
}

void Cast::EndChildren() {
  const int children = static_cast<int>(scene_.plan.children.size());
  for (int i = 0; i < children; ++i) {
    if (!scene_.Known(i)) main_.Fork(i);
    if (!scene_.Known(i)) Trouble(fmt::format("child {} could not be forked", i));
  }
  for (int i = 0; i < children; ++i) End(i, scene_, main_, troubles_);
  for (int i = 0; i < children; ++i) {
    const ChildPlan& plan = scene_.plan.children[static_cast<size_t>(i)];
    if (plan.end != ChildPlan::End::kStop &&
        !AwaitState(i, v1::Child::STATE_CLOSED, scene_, main_)) {
      Trouble(fmt::format("{} does not close", plan.spec.display_name()));
    }
  }
}

void Cast::LookBack() {
  const std::optional<v1::ListChildrenResponse> list = main_.List();
  if (!list) return Trouble("the agent does not answer in the end");
  const int64_t head = list->cursor().sequence();
  v1::ObserveRequest request;
  request.set_parent("agents/-");
  request.set_client(main_.name());
  // Should nothing be left in the logs that is as new.
  request.mutable_observation()->mutable_duration()->set_nanos(300'000'000);
  v1::ObserveStart& start = *request.mutable_observation()->mutable_start();
  const auto look = [&] {
    main_.Observe(request, [&](int64_t, const v1::ObserveResponse& response) {
      return response.batch().events_size() > 0 &&
             response.batch().events().rbegin()->sequence() >= head;
    });
  };
  start.set_earliest(true);
  look();
  *start.mutable_after() = scene_.beginning;
  look();
  start.mutable_after()->set_sequence(head / 2);
  look();
}

void Cast::Linger() {
  v1::ObserveRequest request;
  request.set_parent("agents/-");
  request.set_client(main_.name());
  request.mutable_observation()->mutable_start()->set_latest(true);
  request.mutable_observation()->mutable_heartbeat_interval()->set_seconds(1);
  // Should the children that are left never be quiet.
  request.mutable_observation()->mutable_duration()->set_seconds(5);
  main_.Observe(request, [](int64_t, const v1::ObserveResponse& response) {
    return response.has_heartbeat();
  });
}

Recording Cast::Leave() {
  for (std::thread& thread : watching_) thread.join();
  Recording recording = main_.TakeRecords();
  const auto append = [&](Recording records) {
    std::move(records.begin(), records.end(), std::back_inserter(recording));
  };
  append(witness_.TakeRecords());
  for (const std::unique_ptr<Sender>& sender : senders_) append(sender->TakeRecords());
  for (const std::unique_ptr<Observer>& observer : observers_) append(observer->TakeRecords());
  std::sort(recording.begin(), recording.end(),
            [](const Record& a, const Record& b) { return a.moment < b.moment; });
  return recording;
}

}  // namespace

History RunHistory(const Programs& programs, const Plan& plan) {
  History history;
  const Directory directory;
  absl::StatusOr<std::unique_ptr<AgentProcess>> agent =
      AgentProcess::Start(programs.agent, directory.path(), plan.config);
  if (!agent.ok()) {
    history.troubles.emplace_back(agent.status().message());
    return history;
  }
  Scene scene(plan, (*agent)->target(), programs.child, directory.path());
  Cast cast(scene, history.troubles);
  cast.Play();
  if (const int code = (*agent)->Stop(kHangs); code != 0) {
    history.troubles.push_back(
        fmt::format("the agent ended with {}; its log:\n{}", code, (*agent)->log()));
  }
  agent->reset();
  history.recording = cast.Leave();

  auto limits = std::make_shared<v1::AgentLimits>(plan.config.limits());
  history.recording.insert(
      history.recording.begin(),
      Record{.party = "agent", .what = What::kLimits, .body = std::move(limits)});
  for (int i = 0; i < static_cast<int>(plan.children.size()); ++i) {
    const std::optional<v1::Child> known = scene.Known(i);
    if (!known) continue;
    ++history.children;
    AppendAccount(scene.AccountOf(i), known->name().substr(known->name().rfind('/') + 1),
                  history.recording);
  }
  history.observers = plan.observers.size() + 1;
  history.senders = plan.senders.size();
  history.events = scene.seen();
  if (history.events < plan.events_min) {
    history.troubles.push_back(
        fmt::format("there were {} events, of at least {}", history.events, plan.events_min));
  }
  return history;
}

}  // namespace deka::validator
