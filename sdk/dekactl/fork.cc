#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "fmt/format.h"
#include "sdk/dekactl/commands.h"
#include "sdk/dekactl/progress.h"
#include "sdk/dekactl/words.h"

namespace deka::dekactl {
namespace {

struct Options {
  std::string name;
  std::vector<std::string> labels;
  std::string dialect;
  std::vector<std::string> env;
  std::string cwd;
  std::string program;
  std::vector<std::string> args;
};

// Program and directory as they are meant here: the agent shares this machine, not this directory.
absl::StatusOr<v1::ChildSpec> MakeSpec(const Options& options) {
  absl::StatusOr<v1::ChildSpec> spec = SpecOf(options.program, options.args);
  if (!spec.ok()) {
    return spec;
  }
  if (!options.cwd.empty()) {
    spec->set_cwd((std::filesystem::path(spec->cwd()) / options.cwd).lexically_normal());
  }
  spec->set_display_name(options.name);
  for (const std::string& label : options.labels) {
    auto [key, value] = *ParsePair(label);
    (*spec->mutable_labels())[key] = value;
  }
  for (const std::string& variable : options.env) {
    auto [key, value] = *ParsePair(variable);
    (*spec->mutable_env())[key] = value;
  }
  if (!options.dialect.empty()) {
    spec->set_dialect(*ParseDialect(options.dialect));
  }
  return spec;
}

int Fork(const Options& options, Context& context) {
  absl::StatusOr<v1::ChildSpec> spec = MakeSpec(options);
  if (!spec.ok()) {
    return context.Fail(spec.status());
  }
  absl::StatusOr<Client> client = context.Connect();
  if (!client.ok()) {
    return context.Fail(client.status());
  }
  absl::StatusOr<Child> child = [&] {
    Progress progress(context.err, "starting " + options.program);
    return client->Fork(*std::move(spec));
  }();
  if (!child.ok()) {
    return context.Fail(child.status());
  }
  const v1::Child& description = child->description();
  context.err.Line(Printable(
      fmt::format("dialect {}: {}", Word(description.dialect()), description.dialect_reason())));
  context.out.Line(child->name());
  return context.Written();
}

}  // namespace

void AddFork(CLI::App& app, Context& context) {
  const auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("fork",
                                         "Starts a child\n\n"
                                         "  dekactl fork --name worker -- node worker.js\n\n"
                                         "Prints its resource name, and on standard error its "
                                         "dialect and why it was chosen. Behind -- "
                                         "every word is the program's.");
  command->add_option("--name", options->name, "A name to call it by")->type_name("NAME");
  command->add_option("--label", options->labels, "A label, to be found by; repeatable")
      ->type_name("KEY=VALUE")
      ->allow_extra_args(false)
      ->check(Check(ParsePair));
  command
      ->add_option("--dialect", options->dialect,
                   "How messages are written on its channel; default: as the program expects")
      ->type_name("deka|node")
      ->check(Check(ParseDialect));
  command->add_option("--env", options->env, "A variable beside the agent's own; repeatable")
      ->type_name("KEY=VALUE")
      ->allow_extra_args(false)
      ->check(Check(ParsePair));
  command->add_option("--cwd", options->cwd, "Its working directory; default: this one")
      ->type_name("DIR");
  command->add_option("PROGRAM", options->program, "A path, or a name in this shell's PATH")
      ->type_name("PROGRAM")
      ->option_text(" ")
      ->required();
  command->prefix_command();
  command->callback([command, options, &context] {
    CheckKeys("--label", options->labels);
    CheckKeys("--env", options->env);
    // What was not known, in order: first, if it was given, the `--` before PROGRAM.
    options->args = command->remaining();
    if (!options->args.empty() && options->args.front() == "--") {
      options->args.erase(options->args.begin());
    } else if (!options->args.empty() && options->args.front().starts_with('-')) {
      throw CLI::ExtrasError("fork", options->args);
    }
    context.exit_code = Fork(*options, context);
  });
}

}  // namespace deka::dekactl
