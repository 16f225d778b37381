#!/hv/busybox sh
# The guest's first process. `cargo hv` puts it, a static busybox and, with --run, the user's command into the initramfs.
# It works in an empty root file system as well as on top of someone else's (--initrd).
bb=/hv/busybox
$bb mkdir -p /hv/bin /proc /sys /dev /tmp
$bb --install -s /hv/bin
[ -e /bin ] || $bb ln -s hv/bin /bin
[ -e /sbin ] || $bb ln -s hv/bin /sbin
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/hv/bin HOME=/ TERM=${TERM:-vt100}
$bb mount -t devtmpfs dev /dev
$bb mkdir -p /dev/pts /dev/shm
$bb mount -t proc proc /proc
$bb mount -t sysfs sys /sys
$bb mount -t devpts devpts /dev/pts
$bb mount -t tmpfs tmp /tmp
$bb mount -t debugfs debugfs /sys/kernel/debug 2>/dev/null
$bb ifconfig lo 127.0.0.1 up 2>/dev/null
# With --disk, --net or --rootfs: the drivers, each behind those that it needs.
for driver in /hv/drivers/*.ko; do
	[ ! -e "$driver" ] || $bb insmod "$driver" || echo "hv: can't load $driver"
done
# The rest is up to the root file system on a disk, if there is to be one.
[ ! -e /hv/root ] || . /hv/root
if [ -e /sys/class/net/eth0 ]; then
	# The addresses of QEMU's user network are always these.
	$bb ifconfig eth0 10.0.2.15 netmask 255.255.255.0 up
	$bb route add default gw 10.0.2.2
	$bb mkdir -p /etc
	[ -e /etc/resolv.conf ] || echo nameserver 10.0.2.3 >/etc/resolv.conf
fi

if [ -e /hv/run ]; then
	# Between the two marks is the command's output and nothing else, byte for byte.
	mark="hv-$($bb cat /hv/nonce)"
	$bb stty raw -echo
	echo "$mark begin"
	$bb sh /hv/run </dev/null 2>&1
	printf '\n%s status %d\n' "$mark" $?
else
	echo
	echo "Linux $($bb uname -r) on $($bb nproc) CPU(s), under Unbroken. \`exit\` or \`poweroff -f\` ends the machine; so does Ctrl-A X."
	$bb setsid $bb cttyhack $bb sh -l
fi
$bb sync
$bb poweroff -f
