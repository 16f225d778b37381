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
	# Between the marks `begin` and `status` is what the command writes to standard output, byte for byte, and nothing else but
	# whole lines that begin with the mark: a mark brings the newline before it along. One `echo` is one write, so that no
	# other write comes in between.
	nl='
'
	# Standard error, line by line, as far as it has come; `end` in it is not the command's.
	errors() {
		while IFS= read -r line; do
			case $line in
			*"$mark end")
				line=${line%"$mark end"}
				[ -z "$line" ] || echo "$nl$mark part $line"
				return
				;;
			esac
			echo "$nl$mark error $line"
		done
	}
	# Standard input, in lines of base64, each asked for: a serial port has no flow control. `.` is its end.
	input() {
		while read -r line <&4; do
			[ "$line" != . ] || return
			echo "$line" | $bb base64 -d || return
			echo "$nl$mark more" >&5
		done
	}
	$bb stty raw icanon -icrnl -echo
	$bb mkfifo /hv/errors /hv/input
	while :; do
		mark="hv-$($bb cat /hv/nonce)"
		errors </hv/errors &
		errors=$!
		exec 3>/hv/errors 4<&0 5>&1
		echo "$mark begin"
		input=
		if [ -e /hv/stdin ]; then
			input >/hv/input 3>&- &
			input=$!
			$bb sh /hv/run </hv/input 2>&3 3>&- 4<&- 5>&-
		else
			$bb sh /hv/run </dev/null 2>&3 3>&- 4<&- 5>&-
		fi
		status=$?
		[ -z "$input" ] || kill $input 2>/dev/null
		printf '%s end\n' "$mark" >&3
		wait $errors
		echo "$nl$mark status $status"
		# With --save the machine is saved here. Where it goes on there is another command: its nonce, then its text in lines of
		# base64; `.` ends them, and is no nonce.
		[ -e /hv/more ] || break
		echo "$mark ready"
		read -r nonce || break
		[ "$nonce" != . ] || break
		echo "$nonce" >/hv/nonce
		while read -r line && [ "$line" != . ]; do
			echo "$line"
		done | $bb base64 -d >/hv/run
	done
else
	# The size of the user's terminal, which the serial port knows nothing of: HV_SIZE=ROWSxCOLUMNS on the command line.
	[ -z "$HV_SIZE" ] || $bb stty rows "${HV_SIZE%x*}" cols "${HV_SIZE#*x}"
	unset HV_SIZE
	echo
	echo "Linux $($bb uname -r) on $($bb nproc) CPU(s), under Unbroken. \`exit\` or \`poweroff -f\` ends the machine; so does Ctrl-A X."
	$bb setsid $bb cttyhack $bb sh -l
fi
$bb sync
$bb poweroff -f
