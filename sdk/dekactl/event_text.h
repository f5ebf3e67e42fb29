// Events for people: one line each.
//
//   12:34:56.789 worker  from          {"pong":1}
#ifndef SDK_DEKACTL_EVENT_TEXT_H_
#define SDK_DEKACTL_EVENT_TEXT_H_

#include <map>
#include <string>
#include <string_view>

#include "deka/bridge/v1/bridge_service.pb.h"

namespace deka::dekactl {

// Knows what the children are called. Thread: one at a time.
class EventText {
 public:
  explicit EventText(bool colored) : colored_(colored) {}

  // From now on the child is called by its display name, if it has one and no other has the same.
  void Learn(const bridge::v1::Child& child);

  // Each without a line break at its end; nothing in it can move a terminal's cursor.
  std::string Line(const bridge::v1::Event& event);
  // A gap has no time of its own: `now` is when it is told.
  std::string Line(const bridge::v1::Gap& gap, const bridge::v1::Cursor& after,
                   const google::protobuf::Timestamp& now);

 private:
  std::string Label(const std::string& id);

  const bool colored_;
  std::map<std::string, std::string> names_;  // by id
  std::map<std::string, int> uses_;           // of a name
  size_t width_ = 0;                          // of the widest label so far
};

}  // namespace deka::dekactl

#endif  // SDK_DEKACTL_EVENT_TEXT_H_
