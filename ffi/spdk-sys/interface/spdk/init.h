/* All of SPDK's subsystems at once, from the application's thread. */
#pragma once
#include <stdbool.h>
#include <sys/types.h>

typedef void (*spdk_subsystem_init_fn)(int result, void *context);
typedef void (*spdk_subsystem_fini_fn)(void *context);

void spdk_subsystem_init(spdk_subsystem_init_fn callback, void *context);
void spdk_subsystem_load_config(void *json, ssize_t size, spdk_subsystem_init_fn callback, void *context,
				bool stop_on_error);
void spdk_subsystem_fini(spdk_subsystem_fini_fn callback, void *context);
