// What KVM/arm64 takes for the operations that `cargo hv bench` measures on Unbroken: the first process of a Linux at
// EL2. It drives KVM by its ioctls alone, with a guest of a few instructions that times its own stores.
//
// With QEMU's `-icount shift=0` and `cntfrq=1000000000`, one tick of CNTVCT_EL0 is one instruction, of whatever
// exception level. A row's `n` counts samples of calls, or pages. Bulk rows include the system call and
// the copy of the bitmap to user space: KVM has no other way in.
//
// It prints the lines that the payload prints too (guest-payload/src/bench), the kernel's release before them, and
// switches the machine off. A failure is a line that begins with "comparator: ".
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/kvm.h>
#include <linux/mman.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <unistd.h>

#ifndef KVM_CAP_ARM_EAGER_SPLIT_CHUNK_SIZE
#define KVM_CAP_ARM_EAGER_SPLIT_CHUNK_SIZE 228 // since Linux 6.5
#endif

enum { PAGE = 4096, BLOCK = 2 << 20, PAGES_PER_BLOCK = BLOCK / PAGE };

#define MEMORY_SIZE (64UL << 20) // the logged memory: 32 blocks
#define PAGES (MEMORY_SIZE / PAGE)
#define BLOCKS (MEMORY_SIZE / BLOCK)
#define LARGE_SIZE (1UL << 30) // a slot of 262 144 pages, of which none is touched
#define GIB_SIZE (1UL << 30)   // a GiB in huge pages
#define CALLS 1000UL           // hypercalls

// The guest's physical memory.
#define CODE_GPA 0x00000000UL
#define DONE_GPA 0x09000000UL // nothing is there: a store ends the guest's run
#define DEVICE_GPA 0x0a000000UL // nothing is there either: each access leaves KVM, and user space lets the guest go on
#define TIMES_GPA 0x10000000UL
#define MEMORY_GPA 0x80000000UL
#define LARGE_GPA 0x100000000UL
#define GIB_GPA 0x200000000UL

#define GICD_GPA 0x08000000UL
#define GICR_GPA 0x080a0000UL

enum { SLOT_CODE, SLOT_MEMORY, SLOT_TIMES, SLOT_LARGE, SLOT_GIB };

#define SMCCC_VERSION 0x80000000UL
#define PSTATE_EL1H_MASKED 0x3c5 // EL1h, all interrupts masked

static _Noreturn void end(void)
{
	sync();
	reboot(RB_POWER_OFF);
	_exit(1);
}

static _Noreturn void fail(const char *what)
{
	printf("comparator: %s failed: %s\n", what, strerror(errno));
	end();
}

static int checked_ioctl(int fd, unsigned long request, void *argument, const char *what)
{
	int result = ioctl(fd, request, argument);
	if (result < 0)
		fail(what);
	return result;
}
#define IOCTL(fd, request, argument) checked_ioctl(fd, request, argument, #request)

// The counter, after all that came before it, and before all that follows.
static inline uint64_t now(void)
{
	uint64_t ticks;
	asm volatile("isb\n\tmrs %0, cntvct_el0\n\tisb" : "=r"(ticks)::"memory");
	return ticks;
}

static uint64_t overhead; // what two calls of now() take by themselves

// Instructions that a statement takes.
#define INSTRUCTIONS(statement) \
	({ \
		uint64_t begin_ = now(); \
		statement; \
		now() - begin_ - overhead; \
	})

// The guest's programs, at EL1 with the MMU off: x0 = first address or function, x1 = stride, x2 = count, x3 = where the
// times go (32 bits each), x4 = an address whose store ends the run. Each time is that of one store (or call) between
// two readings of the counter; guest() takes off what is no part of the exit.
asm(".pushsection .rodata\n"
    "	.balign 2048\n"
    "	.globl	guest_begin, guest_write, guest_device, guest_call, guest_fetch, guest_on, guest_started, guest_end\n"
    "guest_begin:\n"
    "guest_write:\n"
    "1:	isb\n"
    "	mrs	x9, cntvct_el0\n"
    "	str	x9, [x0]\n"
    "	isb\n"
    "	mrs	x10, cntvct_el0\n"
    "	sub	x10, x10, x9\n"
    "	str	w10, [x3], #4\n"
    "	add	x0, x0, x1\n"
    "	subs	x2, x2, #1\n"
    "	b.ne	1b\n"
    "	str	x2, [x4]\n"
    "	b	.\n"
    "guest_device:\n"
    "1:	isb\n"
    "	mrs	x9, cntvct_el0\n"
    "	str	w2, [x0, #0x50]\n"
    "	ldr	w11, [x0, #0x60]\n"
    "	str	w11, [x0, #0x64]\n"
    "	isb\n"
    "	mrs	x10, cntvct_el0\n"
    "	sub	x10, x10, x9\n"
    "	str	w10, [x3], #4\n"
    "	subs	x2, x2, #1\n"
    "	b.ne	1b\n"
    "	str	x2, [x4]\n"
    "	b	.\n"
    "guest_call:\n"
    "	mov	x13, x0\n"
    "	mov	x14, x2\n"
    "	mov	x15, x3\n"
    "	mov	x16, x4\n"
    "1:	mov	x0, x13\n"
    "	isb\n"
    "	mrs	x9, cntvct_el0\n"
    "	hvc	#0\n"
    "	isb\n"
    "	mrs	x10, cntvct_el0\n"
    "	sub	x10, x10, x9\n"
    "	str	w10, [x15], #4\n"
    "	subs	x14, x14, #1\n"
    "	b.ne	1b\n"
    "	str	x14, [x16]\n"
    "	b	.\n"
    // A fetch from x0, whose abort the vector takes; x11 is where it returns to.
    "guest_fetch:\n"
    "	adr	x5, guest_vectors\n"
    "	msr	vbar_el1, x5\n"
    "1:	adr	x11, 2f\n"
    "	isb\n"
    "	mrs	x9, cntvct_el0\n"
    "	br	x0\n"
    "2:	sub	x10, x10, x9\n"
    "	str	w10, [x3], #4\n"
    "	subs	x2, x2, #1\n"
    "	b.ne	1b\n"
    "	str	x2, [x4]\n"
    "	b	.\n"
    // CPU_ON of x0 at x1, which is given x3.
    "guest_on:\n"
    "	mov	x13, x3\n"
    "	mov	x16, x4\n"
    "	mov	x2, x1\n"
    "	mov	x1, x0\n"
    "	movz	x0, #3\n"
    "	movk	x0, #0xc400, lsl #16\n"
    "	isb\n"
    "	mrs	x9, cntvct_el0\n"
    "	hvc	#0\n"
    "	str	w9, [x13]\n"
    "	str	w0, [x13, #8]\n"
    "	str	x16, [x16]\n"
    "	b	.\n"
    "guest_started:\n"
    "	mrs	x9, cntvct_el0\n"
    "	str	w9, [x0, #4]\n"
    "	movz	x1, #0x0900, lsl #16\n"
    "	str	x1, [x1]\n"
    "	b	.\n"
    // The synchronous vector of EL1's own stack pointer.
    "	.balign	2048\n"
    "guest_vectors:\n"
    "	.skip	0x200\n"
    "	isb\n"
    "	mrs	x10, cntvct_el0\n"
    "	msr	elr_el1, x11\n"
    "	eret\n"
    "guest_end:\n"
    ".popsection\n");
extern const char guest_begin[], guest_write[], guest_device[], guest_call[], guest_fetch[], guest_on[], guest_started[],
    guest_end[];

static int kvm, vm, vcpu;
static uint64_t vcpus = 1; // that a VM has
static int second_vcpu;    // the other one, which is off at first
static struct kvm_run *run;
static char *memory, *large, *gib, *code;
static uint32_t *times;
static uint64_t *bitmap, *ones;

static void set_register(uint64_t index, uint64_t value)
{
	struct kvm_one_reg reg = {
		.id = KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM_CORE | (2 * index),
		.addr = (uintptr_t)&value,
	};
	IOCTL(vcpu, KVM_SET_ONE_REG, &reg);
}

// Runs one of the guest's programs to its end.
static void guest(const char *program, uint64_t base, uint64_t stride, uint64_t count)
{
	enum { PC = 32, PSTATE = 33 };
	set_register(PC, CODE_GPA + (uint64_t)(program - guest_begin));
	set_register(PSTATE, PSTATE_EL1H_MASKED);
	const uint64_t arguments[] = {base, stride, count, TIMES_GPA, DONE_GPA};
	for (int i = 0; i < 5; i++)
		set_register(i, arguments[i]);
	// A virtual machine monitor with nothing to do: what it would add for a real device is not measured.
	do {
		while (ioctl(vcpu, KVM_RUN, 0) < 0)
			if (errno != EINTR)
				fail("KVM_RUN");
	} while (run->exit_reason == KVM_EXIT_MMIO && run->mmio.phys_addr - DEVICE_GPA < PAGE);
	if (run->exit_reason != KVM_EXIT_MMIO || run->mmio.phys_addr != DONE_GPA) {
		printf("comparator: the guest left with reason %u, not by its last store\n", run->exit_reason);
		end();
	}
	// The ISB and the second reading are no part of it, nor is a store that went through at last.
	for (uint64_t i = 0; i < count; i++)
		times[i] -= program == guest_write ? 3 : 2;
	// The store is only over once the vCPU was entered again.
	run->immediate_exit = 1;
	ioctl(vcpu, KVM_RUN, 0);
	run->immediate_exit = 0;
}

static void write_all(void)
{
	guest(guest_write, MEMORY_GPA, PAGE, PAGES);
}

static int compare(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
	return (x > y) - (x < y);
}

// A row over samples, one a call.
static void row_of_calls(const char *name, uint32_t *samples, uint64_t count)
{
	uint64_t sum = 0;
	for (uint64_t i = 0; i < count; i++)
		sum += samples[i];
	qsort(samples, count, sizeof *samples, compare);
	printf("bench: %s n=%" PRIu64 " mean=%.2f median=%u max=%u unit=call\n", name, count, (double)sum / count,
	       samples[count / 2], samples[count - 1]);
}

// A row for one call over many pages.
static void row_of_pages(const char *name, uint64_t instructions, uint64_t pages)
{
	printf("bench: %s n=%" PRIu64 " mean=%.2f median=%" PRIu64 " max=%" PRIu64 " unit=page\n", name, pages,
	       (double)instructions / pages, instructions / pages, instructions / pages);
}

static void row_of_one_call(const char *name, uint64_t instructions)
{
	uint32_t sample = instructions;
	row_of_calls(name, &sample, 1);
}

static void slot(int number, uint64_t gpa, void *at, uint64_t size, uint32_t flags)
{
	struct kvm_userspace_memory_region region = {number, flags, gpa, size, (uintptr_t)at};
	IOCTL(vm, KVM_SET_USER_MEMORY_REGION, &region);
}

static void log_memory(int on)
{
	slot(SLOT_MEMORY, MEMORY_GPA, memory, MEMORY_SIZE, on ? KVM_MEM_LOG_DIRTY_PAGES : 0);
}

static uint64_t harvest(int number)
{
	struct kvm_dirty_log log = {.slot = number, .dirty_bitmap = bitmap};
	return INSTRUCTIONS(IOCTL(vm, KVM_GET_DIRTY_LOG, &log));
}

static uint64_t clear(uint64_t pages)
{
	struct kvm_clear_dirty_log log = {.slot = SLOT_MEMORY, .num_pages = pages, .dirty_bitmap = ones};
	return INSTRUCTIONS(IOCTL(vm, KVM_CLEAR_DIRTY_LOG, &log));
}

static void expect_dirty(uint64_t pages)
{
	uint64_t count = 0;
	for (uint64_t i = 0; i < PAGES / 64; i++)
		count += __builtin_popcountll(bitmap[i]);
	if (count != pages) {
		printf("comparator: %" PRIu64 " pages are dirty, not %" PRIu64 "\n", count, pages);
		end();
	}
}

static int enable(uint32_t capability, uint64_t argument)
{
	struct kvm_enable_cap cap = {.cap = capability, .args = {argument}};
	return ioctl(vm, KVM_ENABLE_CAP, &cap);
}

static void device_attribute(int device, uint32_t group, uint64_t attribute, void *value)
{
	struct kvm_device_attr attr = {.group = group, .attr = attribute, .addr = (uintptr_t)value};
	IOCTL(device, KVM_SET_DEVICE_ATTR, &attr);
}

static void create_gic(void)
{
	struct kvm_create_device device = {.type = KVM_DEV_TYPE_ARM_VGIC_V3};
	IOCTL(vm, KVM_CREATE_DEVICE, &device);
	uint32_t interrupts = 64;
	uint64_t distributor = GICD_GPA, redistributors = GICR_GPA | vcpus << 52; // one redistributor each
	device_attribute(device.fd, KVM_DEV_ARM_VGIC_GRP_NR_IRQS, 0, &interrupts);
	device_attribute(device.fd, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_V3_ADDR_TYPE_DIST, &distributor);
	device_attribute(device.fd, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_V3_ADDR_TYPE_REDIST_REGION, &redistributors);
	device_attribute(device.fd, KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_CTRL_INIT, NULL);
	close(device.fd);
}

// A VM with one vCPU and all slots; the guest has written to each block once, so that stage 2 maps them all. False if
// the kernel has no such eager split.
static int create_vm(int manual_clear, uint64_t eager_chunk)
{
	vm = ioctl(kvm, KVM_CREATE_VM, 40UL);
	if (vm < 0)
		fail("KVM_CREATE_VM");
	if (manual_clear && enable(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
				   KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET) < 0)
		fail("KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2");
	if (eager_chunk && enable(KVM_CAP_ARM_EAGER_SPLIT_CHUNK_SIZE, eager_chunk) < 0) {
		close(vm);
		return 0;
	}
	vcpu = ioctl(vm, KVM_CREATE_VCPU, 0UL);
	if (vcpu < 0)
		fail("KVM_CREATE_VCPU");
	if (vcpus > 1)
		second_vcpu = IOCTL(vm, KVM_CREATE_VCPU, (void *)1);
	create_gic();
	struct kvm_vcpu_init init;
	IOCTL(vm, KVM_ARM_PREFERRED_TARGET, &init);
	memset(init.features, 0, sizeof init.features);
	init.features[0] |= 1 << KVM_ARM_VCPU_PSCI_0_2;
	IOCTL(vcpu, KVM_ARM_VCPU_INIT, &init);
	init.features[0] |= 1 << KVM_ARM_VCPU_POWER_OFF;
	if (vcpus > 1)
		IOCTL(second_vcpu, KVM_ARM_VCPU_INIT, &init);
	run = mmap(0, IOCTL(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
	if (run == MAP_FAILED)
		fail("mmap of the vCPU");
	slot(SLOT_CODE, CODE_GPA, code, BLOCK, 0);
	slot(SLOT_TIMES, TIMES_GPA, times, BLOCK, 0);
	slot(SLOT_MEMORY, MEMORY_GPA, memory, MEMORY_SIZE, 0);
	// All pages of the times, then all blocks.
	guest(guest_write, MEMORY_GPA, 0, PAGES);
	guest(guest_write, MEMORY_GPA, BLOCK, BLOCKS);
	return 1;
}

static void destroy_vm(void)
{
	munmap(run, IOCTL(kvm, KVM_GET_VCPU_MMAP_SIZE, 0));
	close(vcpu);
	close(vm);
}

// Memory at a multiple of 2 MiB, touched, in huge pages or surely not.
static char *allocate(uint64_t size, int advice)
{
	char *at = mmap(0, size + BLOCK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (at == MAP_FAILED)
		fail("mmap");
	at = (char *)(((uintptr_t)at + BLOCK - 1) & ~(uintptr_t)(BLOCK - 1));
	if (madvise(at, size, advice) < 0)
		fail("madvise");
	return at;
}

static char *allocate_touched(uint64_t size, int advice)
{
	char *at = allocate(size, advice);
	for (uint64_t offset = 0; offset < size; offset += PAGE)
		at[offset] = 1;
	return at;
}

// The best of some rounds: in the others the kernel did something of its own meanwhile (a tick, or an RCU grace period,
// in which time jumps to the next tick).
#define ROUNDS 5
#define SHIFTED_ROUNDS 16
#define TICKS_PER_JIFFY 4000000UL // CONFIG_HZ=250

// Lets time pass, in every round more of it: a call that waits for ticks has the same phase after each of them.
static void shift(int round)
{
	uint64_t end = now() + round * (TICKS_PER_JIFFY / SHIFTED_ROUNDS);
	while (now() < end)
		;
}

static void keep_best(uint64_t *best, uint64_t instructions)
{
	if (instructions < *best)
		*best = instructions;
}

static void measure_protection_of_blocks(void)
{
	uint64_t best = UINT64_MAX;
	for (int round = 0; round < SHIFTED_ROUNDS; round++) {
		create_vm(0, 0);
		shift(round);
		keep_best(&best, INSTRUCTIONS(log_memory(1)));
		destroy_vm();
	}
	row_of_one_call("protect-32-blocks", best);
}

static void measure_eager_split(void)
{
	uint64_t best = UINT64_MAX;
	for (int round = 0; round < SHIFTED_ROUNDS; round++) {
		if (!create_vm(0, BLOCK)) {
			puts("comparator: this kernel has no eager split (Linux 6.5 has)");
			return;
		}
		shift(round);
		keep_best(&best, INSTRUCTIONS(log_memory(1)));
		destroy_vm();
	}
	row_of_pages("eager-split", best, PAGES);
}

// Without huge pages KVM maps no blocks, and nothing below would measure what it says.
static void expect_huge_pages(void)
{
	FILE *rollup = fopen("/proc/self/smaps_rollup", "r");
	if (!rollup)
		fail("opening /proc/self/smaps_rollup");
	unsigned long kib = 0;
	char line[128];
	while (fgets(line, sizeof line, rollup))
		if (sscanf(line, "AnonHugePages: %lu kB", &kib) == 1)
			break;
	fclose(rollup);
	if (kib < MEMORY_SIZE >> 10) {
		printf("comparator: only %lu KiB of %lu are in huge pages\n", kib, MEMORY_SIZE >> 10);
		end();
	}
}

// The end of a log whose pages have all been written and then harvested, so that they are protected, and the faults that put
// each block together again: KVM does that where a fault finds a page of a huge page.
static void measure_collapse(void)
{
	uint64_t best = UINT64_MAX;
	for (int round = 0; round < SHIFTED_ROUNDS; round++) {
		create_vm(0, 0);
		log_memory(1);
		write_all();
		harvest(SLOT_MEMORY);
		expect_dirty(PAGES);
		shift(round);
		uint64_t all = INSTRUCTIONS(log_memory(0));
		guest(guest_write, MEMORY_GPA, BLOCK, BLOCKS);
		for (uint64_t i = 0; i < BLOCKS; i++)
			all += times[i];
		// What is a block again is no fault any more.
		guest(guest_write, MEMORY_GPA + PAGE, BLOCK, BLOCKS);
		for (uint64_t i = 0; i < BLOCKS; i++)
			if (times[i] > 100 && times[i] < TICKS_PER_JIFFY / 16) {
				puts("comparator: a fault did not put a block together");
				end();
			}
		keep_best(&best, all);
		destroy_vm();
	}
	row_of_one_call("stop-and-collapse", best);
}

// Runs the other vCPU from when it is turned on to its store that ends the run.
static void *run_second(void *argument)
{
	while (ioctl(second_vcpu, KVM_RUN, 0) < 0)
		if (errno != EINTR)
			fail("KVM_RUN of the other vCPU");
	return argument;
}

// CPU_ON, up to the other vCPU's first instruction. Its thread goes before the caller's as soon as it may run.
static void measure_cpu_on(void)
{
	uint32_t best = UINT32_MAX;
	vcpus = 2;
	for (int round = 0; round < SHIFTED_ROUNDS; round++) {
		create_vm(0, 0);
		pthread_t thread;
		const struct sched_param first = {.sched_priority = 1};
		if (pthread_create(&thread, NULL, run_second, NULL) != 0 ||
		    pthread_setschedparam(thread, SCHED_FIFO, &first) != 0)
			fail("starting a thread");
		// It has come to wait in KVM_RUN by then.
		usleep(20000);
		shift(round);
		times[0] = times[1] = 0;
		guest(guest_on, 1, CODE_GPA + (uint64_t)(guest_started - guest_begin), 0);
		pthread_join(thread, NULL);
		if (times[2] != 0) {
			printf("comparator: CPU_ON was answered with %d\n", (int)times[2]);
			end();
		}
		// The reading is no part of it.
		if (times[1] - times[0] - 1 < best)
			best = times[1] - times[0] - 1;
		close(second_vcpu);
		destroy_vm();
	}
	vcpus = 1;
	row_of_one_call("cpu-on", best);
}

// Logging as it has always been: a harvest protects again what it reports.
static void measure_log(void)
{
	create_vm(0, 0);
	guest(guest_call, SMCCC_VERSION, 0, CALLS);
	row_of_calls("hypercall", times, CALLS);
	// Nothing is mapped there: KVM answers by itself.
	guest(guest_fetch, DEVICE_GPA, 0, CALLS);
	row_of_calls("unmapped-fetch", times, CALLS);
	// The three accesses to a virtio-mmio device's frame that a request takes.
	guest(guest_device, DEVICE_GPA, 0, CALLS);
	row_of_calls("disk-read", times, CALLS);

	log_memory(1);
	write_all();
	// The first page of each block is the one whose fault splits it.
	static uint32_t first[BLOCKS], next[PAGES];
	uint64_t nexts = 0;
	for (uint64_t page = 0; page < PAGES; page++) {
		if (page % PAGES_PER_BLOCK == 0)
			first[page / PAGES_PER_BLOCK] = times[page];
		else
			next[nexts++] = times[page];
	}
	row_of_calls("block-write-fault", first, BLOCKS);
	row_of_calls("block-next-page-fault", next, nexts);

	uint64_t all = harvest(SLOT_MEMORY), one = UINT64_MAX, stop = UINT64_MAX;
	expect_dirty(PAGES);
	for (int round = 1; round < ROUNDS; round++) {
		write_all();
		keep_best(&all, harvest(SLOT_MEMORY));
		expect_dirty(PAGES);
	}
	row_of_pages("harvest-all-dirty", all, PAGES);
	row_of_calls("leaf-write-fault", times, PAGES);
	for (int round = 0; round < ROUNDS; round++) {
		guest(guest_write, MEMORY_GPA, 0, 1);
		keep_best(&one, harvest(SLOT_MEMORY));
		expect_dirty(1);
	}
	row_of_one_call("harvest-one", one);
	for (int round = 0; round < ROUNDS; round++) {
		keep_best(&stop, INSTRUCTIONS(log_memory(0)));
		log_memory(1);
	}
	row_of_one_call("stop", stop);

	uint64_t none = UINT64_MAX;
	slot(SLOT_LARGE, LARGE_GPA, large, LARGE_SIZE, KVM_MEM_LOG_DIRTY_PAGES);
	for (int round = 0; round < ROUNDS; round++)
		keep_best(&none, harvest(SLOT_LARGE));
	expect_dirty(0);
	row_of_one_call("harvest-none", none);
	destroy_vm();
}

// Logging in which user space clears what it took.
static void measure_clearing(void)
{
	create_vm(1, 0);
	log_memory(1);
	clear(PAGES);
	uint64_t all = UINT64_MAX, some = UINT64_MAX;
	for (int round = 0; round < ROUNDS; round++) {
		// The first time, this splits all blocks; after it, all leaves are writable pages.
		write_all();
		keep_best(&all, clear(PAGES));
		guest(guest_write, MEMORY_GPA, PAGE, 64);
		keep_best(&some, clear(64));
	}
	row_of_pages("protect-leaves", all, PAGES);
	row_of_one_call("clear-64", some);
	destroy_vm();
}

// A GiB that is mapped in blocks of `stride` bytes: the start of its log, and unmap and map if there is a row for that.
static void measure_gib(const char *start, uint64_t stride, const char *unmap, const char *map)
{
	uint64_t started = UINT64_MAX, unmapped = UINT64_MAX, mapped = UINT64_MAX;
	for (int round = 0; round < ROUNDS; round++) {
		create_vm(0, 0);
		uint64_t all = INSTRUCTIONS(slot(SLOT_GIB, GIB_GPA, gib, GIB_SIZE, 0));
		// KVM maps what is asked for: these are its faults.
		guest(guest_write, GIB_GPA, stride, GIB_SIZE / stride);
		for (uint64_t i = 0; i < GIB_SIZE / stride; i++)
			all += times[i];
		keep_best(&mapped, all);
		shift(round);
		keep_best(&unmapped, INSTRUCTIONS(slot(SLOT_GIB, GIB_GPA, gib, 0, 0)));
		slot(SLOT_GIB, GIB_GPA, gib, GIB_SIZE, 0);
		guest(guest_write, GIB_GPA, stride, GIB_SIZE / stride);
		shift(round);
		keep_best(&started, INSTRUCTIONS(slot(SLOT_GIB, GIB_GPA, gib, GIB_SIZE, KVM_MEM_LOG_DIRTY_PAGES)));
		destroy_vm();
	}
	row_of_one_call(start, started);
	if (unmap) {
		row_of_one_call(unmap, unmapped);
		row_of_one_call(map, mapped);
	}
}

static void measure_gibs(void)
{
	gib = allocate_touched(GIB_SIZE, MADV_HUGEPAGE);
	measure_gib("start-log-blocks", BLOCK, "unmap-gib", "map-gib");
	munmap(gib, GIB_SIZE);
	gib = mmap(0, GIB_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | 30 << MAP_HUGE_SHIFT, -1, 0);
	if (gib == MAP_FAILED) {
		puts("comparator: this kernel has no page of 1 GiB to give");
		return;
	}
	gib[0] = 1;
	measure_gib("start-log-gib", GIB_SIZE, NULL, NULL);
}

int main(void)
{
	setvbuf(stdout, NULL, _IOLBF, 0);
	mkdir("/dev", 0755);
	if (mount("devtmpfs", "/dev", "devtmpfs", 0, NULL) < 0 && errno != EBUSY)
		fail("mounting /dev");
	mkdir("/proc", 0755);
	if (mount("proc", "/proc", "proc", 0, NULL) < 0)
		fail("mounting /proc");
	struct utsname system;
	uname(&system);
	printf("comparator: kernel %s\n", system.release);
	kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (kvm < 0)
		fail("opening /dev/kvm (is the kernel at EL2?)");
	overhead = UINT64_MAX;
	for (int i = 0; i < 16; i++) {
		uint64_t begin = now(), between = now() - begin;
		if (between < overhead)
			overhead = between;
	}
	code = allocate_touched(BLOCK, MADV_NOHUGEPAGE);
	memcpy(code, guest_begin, guest_end - guest_begin);
	__builtin___clear_cache(code, code + PAGE);
	times = (uint32_t *)allocate_touched(BLOCK, MADV_NOHUGEPAGE);
	memory = allocate_touched(MEMORY_SIZE, MADV_HUGEPAGE);
	expect_huge_pages();
	large = allocate(LARGE_SIZE, MADV_NOHUGEPAGE);
	bitmap = malloc(LARGE_SIZE / PAGE / 8);
	ones = malloc(PAGES / 8);
	if (!bitmap || !ones)
		fail("malloc");
	// Touched, so that no page fault of this process is measured.
	memset(bitmap, 0xff, LARGE_SIZE / PAGE / 8);
	memset(ones, 0xff, PAGES / 8);

	measure_log();
	measure_eager_split();
	measure_protection_of_blocks();
	measure_clearing();
	measure_collapse();
	measure_cpu_on();
	measure_gibs();
	puts("bench: end");
	end();
}
