// The kernels through their C interface, over sizes, options and threads, with nothing else in the process.
//
// `driver STAGE...` runs these stages, `driver` runs all of them; each prints a line.
// The status is 1 for a wrong number or a sanitizer's report, 2 for a name that is none.
#include <cstdio>
#include <cstring>

#include "mistakes.h"
#include "stages.h"

namespace {

struct Named {
    const char* name;
    void (*run)();
};

constexpr Named kStages[] = {{"recurrence", driver::run_recurrence}, {"products", driver::run_products},
                             {"randoms", driver::run_randoms},       {"steps", driver::run_steps},
                             {"elements", driver::run_elements},     {"refusals", driver::run_refusals},
                             {"step-refusals", driver::run_step_refusals},
                             {"threads", driver::run_threads}};

bool run(const char* name) {
    for (const Named& stage : kStages) {
        if (std::strcmp(stage.name, name) != 0) continue;
        stage.run();
        return true;
    }
    return driver::make_mistake(name);
}

}  // namespace

int main(int count, char** names) {
    for (int k = 1; k < count; ++k) {
        if (run(names[k])) continue;
        std::fprintf(stderr, "no stage \"%s\"\n", names[k]);
        return 2;
    }
    if (count > 1) return 0;
    for (const Named& stage : kStages) stage.run();
    return 0;
}
