// An agent, for people and for programs.
#ifndef SDK_DEKACTL_AGENT_TEXT_H_
#define SDK_DEKACTL_AGENT_TEXT_H_

#include <chrono>
#include <string>
#include <vector>

#include "deka/bridge/v1/bridge_service.pb.h"

namespace deka::dekactl {

// A name and what it is on each line, in two columns; nothing in it can move a terminal's cursor.
std::vector<std::string> AgentLines(const bridge::v1::Agent& agent,
                                    std::chrono::system_clock::time_point now, bool colored);

// One object without a line break, always with the same members:
//
//   {"agent":"build-7","version":"0.1.0","agentPid":4711,"keeperPid":null,"sparePid":null,
//    "incarnation":1,"uptime":3.217,"epoch":1732526467000000,"head":30,"observers":2,"children":5,
//    "limits":{"child":{"messageBytesMax":1048576,...},"logsBytesMax":268435456,...}}
//
// Numbers are JSON numbers. Pids are null where there is no such process. `agent`, `epoch` and
// `head` are the parts of a cursor. `uptime` is in seconds.
std::string AgentJson(const bridge::v1::Agent& agent, std::chrono::system_clock::time_point now);

}  // namespace deka::dekactl

#endif  // SDK_DEKACTL_AGENT_TEXT_H_
