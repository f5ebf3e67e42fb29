#include <algorithm>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "fmt/format.h"
#include "sdk/dekactl/commands.h"
#include "sdk/dekactl/event_json.h"
#include "sdk/dekactl/progress.h"
#include "sdk/dekactl/words.h"

namespace deka::dekactl {
namespace {

struct Options {
  bool json = false;
  bool names = false;
};

using Row = std::vector<std::string>;

std::string IdOf(const v1::Child& child) {
  return child.name().substr(child.name().rfind('/') + 1);
}

Color ColorOf(v1::Child::State state) {
  switch (state) {
    case v1::Child::STATE_CONNECTED:
      return Color::kGreen;
    case v1::Child::STATE_DISCONNECTED:
      return Color::kYellow;
    default:
      return Color::kDim;
  }
}

Row RowOf(const v1::Child& child) {
  return {child.display_name().empty() ? "-" : child.display_name(),
          IdOf(child),
          child.pid() == 0 ? "-" : std::to_string(child.pid()),
          std::string(Word(child.dialect())),
          std::string(Word(child.state())),
          std::to_string(child.queued_messages()),
          std::to_string(child.last_sequence())};
}

void PrintTable(const std::vector<v1::Child>& children, Output& out) {
  std::vector<Row> rows = {{"NAME", "ID", "PID", "DIALECT", "STATE", "QUEUE", "LAST"}};
  for (const v1::Child& child : children) {
    rows.push_back(RowOf(child));
  }
  std::vector<size_t> widths(rows.front().size());
  for (const Row& row : rows) {
    for (size_t column = 0; column < row.size(); ++column) {
      widths[column] = std::max(widths[column], row[column].size());
    }
  }
  for (size_t row = 0; row < rows.size(); ++row) {
    std::string line;
    for (size_t column = 0; column < widths.size(); ++column) {
      const bool last = column + 1 == widths.size();
      line += last ? rows[row][column] : fmt::format("{:<{}}  ", rows[row][column], widths[column]);
    }
    const Color color = row == 0 ? Color::kBold : ColorOf(children[row - 1].state());
    out.Line(Paint(out.colored(), color, Printable(line)));
  }
}

// What each child can be named by: its display name where that means one child, else its id.
void PrintNames(const std::vector<v1::Child>& children, Output& out) {
  std::map<std::string, int> uses;
  for (const v1::Child& child : children) {
    ++uses[child.display_name()];
  }
  for (const v1::Child& child : children) {
    const bool named = !child.display_name().empty() && uses[child.display_name()] == 1;
    out.Line(named ? child.display_name() : IdOf(child));
  }
}

int Ps(const Options& options, Context& context) {
  absl::StatusOr<Client> client = context.Connect();
  if (!client.ok()) {
    return context.Fail(client.status());
  }
  const absl::StatusOr<Client::Children> list = [&] {
    Progress progress(context.err, "listing the children");
    return client->List();
  }();
  if (!list.ok()) {
    return context.Fail(list.status());
  }
  if (options.json) {
    for (const v1::Child& child : list->children) {
      context.out.Line(ToJson(child));
    }
  } else if (options.names) {
    PrintNames(list->children, context.out);
  } else {
    PrintTable(list->children, context.out);
  }
  return context.Written();
}

}  // namespace

void AddPs(CLI::App& app, Context& context) {
  const auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("ps",
                                         "Lists the children, ended ones too\n\n"
                                         "QUEUE counts the messages that are not yet written to "
                                         "the child, LAST is the sequence of its "
                                         "newest event.");
  CLI::Option* json =
      command->add_flag("--json", options->json, "One object a line")->option_text(" ");
  command->add_flag("--names", options->names, "Only what each can be named by")->excludes(json);
  command->callback([options, &context] { context.exit_code = Ps(*options, context); });
}

}  // namespace deka::dekactl
