// A stand-in for NVIDIA's management library: the functions that phoenix-nvml calls, as nvml.h declares them. What it
// tells, and how it misbehaves, is in the file "nvml.conf" beside it; package nvmltest says what may stand there.
// Functions that a driver may lack are missing where the macro OLD is defined.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { OK = 0, UNINITIALIZED = 1, INVALID = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, TOO_SMALL = 7 };

struct mig { char uuid[128], profile[64]; unsigned index, gi, ci; unsigned long long mib; };
struct process { unsigned pid; long long mib; char kind; };
struct gpu {
	char uuid[128], name[128], misbehaves[32];
	unsigned index, domain, bus, device;
	int minor, mig_current, mig_pending, recovery, code, migs, processes;
	unsigned long long mib, used_mib;
	struct mig mig[8];
	struct process process[64];
};

static struct gpu gpus[16];
static int count, links[64][2], link_count, cuda, initialized;
static char driver[80], init[64];

static int misbehave(const char *how) {
	if (!strcmp(how, "segfault"))
		*(volatile int *)0 = 1;
	if (!strcmp(how, "abort"))
		abort();
	if (!strcmp(how, "exit"))
		_exit(3);
	if (!strcmp(how, "hang"))
		for (;;)
			pause();
	return atoi(how);
}

static void read_conf(void) {
	Dl_info info;
	char path[4096], line[512];
	struct gpu *g = NULL;
	dladdr(read_conf, &info);
	snprintf(path, sizeof path, "%s", info.dli_fname);
	snprintf(line, sizeof line, "%s/nvml.conf", dirname(path));
	FILE *f = fopen(line, "r");
	count = link_count = cuda = 0;
	driver[0] = init[0] = 0;
	if (!f)
		return;
	while (fgets(line, sizeof line, f)) {
		struct mig m = {0};
		struct process p = {0};
		struct gpu n = {.minor = -1, .mig_current = -1, .recovery = -1};
		line[strcspn(line, "\n")] = 0;
		if (sscanf(line, "init %63s", init) == 1 || sscanf(line, "driver %79s", driver) == 1 || sscanf(line, "cuda %d", &cuda) == 1)
			continue;
		if (!strncmp(line, "print ", 6)) {
			printf("%s\n", line + 6);
			fflush(stdout);
		} else if (!strncmp(line, "leak ", 5))
			open(line + 5, O_RDONLY);
		else if (sscanf(line, "gpu %127s %x:%x:%x.0 %d %llu %llu %127[^\n]", n.uuid, &n.domain, &n.bus, &n.device, &n.minor, &n.mib, &n.used_mib, n.name) >= 7) {
			n.index = count;
			gpus[count] = n;
			g = &gpus[count++];
		} else if (sscanf(line, "link %d %d", &links[link_count][0], &links[link_count][1]) == 2)
			link_count++;
		else if (!g)
			continue;
		else if (sscanf(line, "mig %d %d", &g->mig_current, &g->mig_pending) == 2)
			;
		else if (sscanf(line, "migdevice %u %127s %u %u %llu %63s", &m.index, m.uuid, &m.gi, &m.ci, &m.mib, m.profile) == 6)
			g->mig[g->migs++] = m;
		else if (sscanf(line, "process %c %u %lld", &p.kind, &p.pid, &p.mib) == 3)
			g->process[g->processes++] = p;
		else if (sscanf(line, "recovery %d", &g->recovery) == 1 || sscanf(line, "code %d", &g->code) == 1 ||
			 sscanf(line, "misbehaves %31s", g->misbehaves) == 1)
			;
	}
	fclose(f);
}

// A handle is the address of a struct gpu or of a struct mig.
static struct gpu *gpu_of(void *handle) {
	for (int i = 0; i < count; i++)
		if (handle == &gpus[i] || (handle >= (void *)gpus[i].mig && handle < (void *)(gpus[i].mig + 8)))
			return &gpus[i];
	return NULL;
}
static struct mig *mig_of(void *handle) {
	struct gpu *g = gpu_of(handle);
	return !g || handle == g ? NULL : handle;
}
static int give(char *to, unsigned size, const char *text) {
	if (strlen(text) + 1 > size)
		return TOO_SMALL;
	strcpy(to, text);
	return OK;
}
#define GPU(g, handle)                                                                                                   \
	struct gpu *g = gpu_of(handle);                                                                                  \
	if (!initialized)                                                                                                \
		return UNINITIALIZED;                                                                                    \
	if (!g)                                                                                                          \
		return INVALID;                                                                                          \
	if (g->code)                                                                                                     \
	return g->code

int nvmlInit_v2(void) {
	read_conf();
	int code = misbehave(init);
	initialized += !code;
	return code;
}
int nvmlShutdown(void) {
	if (!initialized)
		return UNINITIALIZED;
	initialized--;
	return OK;
}
const char *nvmlErrorString(int code) { return code ? "an error" : "no error"; }
int nvmlSystemGetDriverVersion(char *version, unsigned size) { return give(version, size, driver); }
int nvmlDeviceGetCount_v2(unsigned *n) {
	*n = count;
	return OK;
}
int nvmlDeviceGetHandleByIndex_v2(unsigned i, void **handle) {
	if (i >= (unsigned)count)
		return INVALID;
	*handle = &gpus[i];
	return gpus[i].code == 15 ? 15 : OK;
}
int nvmlDeviceGetPciInfo_v3(void *handle, void *info) {
	struct { char legacy[16]; unsigned domain, bus, device, id, subsystem; char bus_id[32]; } *pci = info;
	struct gpu *g = gpu_of(handle); // known without asking the device
	if (!g)
		return INVALID;
	pci->domain = g->domain, pci->bus = g->bus, pci->device = g->device;
	snprintf(pci->bus_id, sizeof pci->bus_id, "%08X:%02X:%02X.0", g->domain, g->bus, g->device);
	return OK;
}
int nvmlDeviceGetUUID(void *handle, char *uuid, unsigned size) {
	GPU(g, handle);
	struct mig *m = mig_of(handle);
	return give(uuid, size, m ? m->uuid : g->uuid);
}
int nvmlDeviceGetName(void *handle, char *name, unsigned size) {
	GPU(g, handle);
	char text[256];
	struct mig *m = mig_of(handle);
	snprintf(text, sizeof text, m ? "%s MIG %s" : "%s", g->name, m ? m->profile : "");
	return give(name, size, text);
}
int nvmlDeviceGetMinorNumber(void *handle, unsigned *minor) {
	GPU(g, handle);
	*minor = g->minor;
	return g->minor < 0 ? NOT_SUPPORTED : OK;
}
int nvmlDeviceGetMemoryInfo(void *handle, void *info) {
	struct { unsigned long long total, unused, used; } *m = info;
	GPU(g, handle);
	int code = misbehave(g->misbehaves);
	if (code || !g->mib)
		return code ? code : NOT_SUPPORTED;
	m->total = g->mib << 20, m->used = (g->used_mib + 500) << 20; // with what the driver reserves
	return OK;
}

#ifndef OLD
int nvmlSystemGetCudaDriverVersion_v2(int *version) {
	*version = cuda;
	return cuda ? OK : NOT_SUPPORTED;
}
int nvmlDeviceGetMemoryInfo_v2(void *handle, void *info) {
	struct { unsigned version; unsigned long long total, reserved, unused, used; } *m = info;
	GPU(g, handle);
	int code = misbehave(g->misbehaves);
	if (code || !g->mib)
		return code ? code : NOT_SUPPORTED;
	m->total = g->mib << 20, m->used = g->used_mib << 20;
	return OK;
}
int nvmlDeviceGetMigMode(void *handle, unsigned *current, unsigned *pending) {
	GPU(g, handle);
	*current = g->mig_current, *pending = g->mig_pending;
	return g->mig_current < 0 ? NOT_SUPPORTED : OK;
}
int nvmlDeviceGetMaxMigDeviceCount(void *handle, unsigned *n) {
	GPU(g, handle);
	*n = 7;
	return OK;
}
int nvmlDeviceGetMigDeviceHandleByIndex(void *handle, unsigned index, void **mig) {
	GPU(g, handle);
	for (int i = 0; i < g->migs; i++)
		if (g->mig[i].index == index) {
			*mig = &g->mig[i];
			return OK;
		}
	return NOT_FOUND;
}
int nvmlDeviceGetGpuInstanceId(void *handle, unsigned *id) {
	struct mig *m = mig_of(handle);
	if (!m)
		return INVALID;
	*id = m->gi;
	return OK;
}
int nvmlDeviceGetComputeInstanceId(void *handle, unsigned *id) {
	struct mig *m = mig_of(handle);
	if (!m)
		return INVALID;
	*id = m->ci;
	return OK;
}
int nvmlDeviceGetAttributes_v2(void *handle, void *attributes) {
	struct { unsigned sm, copy, decoder, encoder, jpeg, ofa, gi_slices, ci_slices; unsigned long long mib; } *a = attributes;
	struct mig *m = mig_of(handle);
	if (!m)
		return NOT_SUPPORTED;
	a->mib = m->mib;
	return OK;
}
static int list(void *handle, char kind, unsigned *n, void *infos) {
	struct { unsigned pid; unsigned long long used; unsigned gi, ci; } *to = infos;
	GPU(g, handle);
	unsigned found = 0;
	for (int i = 0; i < g->processes; i++) {
		if (g->process[i].kind != kind)
			continue;
		if (found < *n) {
			to[found].pid = g->process[i].pid;
			to[found].used = g->process[i].mib < 0 ? ~0ull : (unsigned long long)g->process[i].mib << 20;
			to[found].gi = to[found].ci = ~0u;
		}
		found++;
	}
	int code = found > *n ? TOO_SMALL : OK;
	*n = found;
	return code;
}
int nvmlDeviceGetComputeRunningProcesses_v3(void *handle, unsigned *n, void *infos) { return list(handle, 'C', n, infos); }
int nvmlDeviceGetGraphicsRunningProcesses_v3(void *handle, unsigned *n, void *infos) { return list(handle, 'G', n, infos); }
int nvmlDeviceGetP2PStatus(void *a, void *b, int index, int *status) {
	GPU(g, a);
	struct gpu *h = gpu_of(b);
	*status = 5; // not supported
	for (int i = 0; i < link_count; i++)
		if ((links[i][0] == (int)g->index && links[i][1] == (int)h->index) ||
		    (links[i][1] == (int)g->index && links[i][0] == (int)h->index))
			*status = index == 2 ? 0 : 5; // NVLINK
	return OK;
}
int nvmlDeviceGetFieldValues(void *handle, int n, void *values) {
	struct { unsigned field, scope; long long time, latency; unsigned type, code; unsigned value; } *v = values;
	GPU(g, handle);
	for (int i = 0; i < n; i++) {
		v[i].code = v[i].field == 230 && g->recovery >= 0 ? OK : NOT_SUPPORTED;
		v[i].type = 1; // unsigned int
		v[i].value = g->recovery;
	}
	return OK;
}
#endif
