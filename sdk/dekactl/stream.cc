#include "sdk/dekactl/stream.h"

#include "fmt/format.h"
#include "google/protobuf/util/time_util.h"
#include "sdk/dekactl/event_json.h"

namespace deka::dekactl {

using google::protobuf::util::TimeUtil;

Stream::Stream(Context& context, Waiter& waiter, bool json)
    : context_(context), waiter_(waiter), json_(json), text_(context.out.colored()) {}

deka::Observer Stream::Observer() {
  deka::Observer observer;
  observer.on_attached = [this](const v1::Attached& attached) {
    waiter_.TakeInterrupts();
    ipc::MutexLock lock(mutex_);
    place_.set_agent(attached.agent());
    place_.set_epoch(attached.epoch());
  };
  observer.on_child = [this](const v1::Child& child) {
    ipc::MutexLock lock(mutex_);
    text_.Learn(child);
  };
  observer.on_event = [this](const v1::Event& event) { Show(event); };
  observer.on_gap = [this](const v1::Gap& gap) { Show(gap); };
  observer.on_lost = [this](const absl::Status& reason) {
    context_.err.Status(
        fmt::format("the agent is away, trying again: {}", std::string(reason.message())));
  };
  observer.on_replaced = [this](int64_t incarnation) {
    context_.Hint(fmt::format("the agent was replaced; incarnation {} goes on", incarnation));
  };
  observer.on_resumed = [this](const v1::Cursor&) { context_.err.Status(""); };
  observer.on_end = [this](const absl::Status& status, const v1::Fin& fin) {
    ipc::MutexLock lock(mutex_);
    end_ = End{status, fin};
    waiter_.Wake();
  };
  return observer;
}

bool Stream::missed() const {
  ipc::MutexLock lock(mutex_);
  return missed_;
}

bool Stream::closed() const {
  ipc::MutexLock lock(mutex_);
  return closed_;
}

std::optional<Stream::End> Stream::end() const {
  ipc::MutexLock lock(mutex_);
  return end_;
}

void Stream::Show(const v1::Event& event) {
  ipc::MutexLock lock(mutex_);
  context_.out.Line(json_ ? EventJson(event) : text_.Line(event));
  if (event.has_closed()) {
    closed_ = true;
    waiter_.Wake();
  }
  if (context_.out.error() != 0) {
    waiter_.Wake();
  }
}

void Stream::Show(const v1::Gap& gap) {
  ipc::MutexLock lock(mutex_);
  missed_ = true;
  v1::Cursor after = place_;
  after.set_sequence(gap.to_sequence());
  context_.out.Line(json_ ? GapJson(gap, after)
                          : text_.Line(gap, after, TimeUtil::GetCurrentTime()));
}

}  // namespace deka::dekactl
