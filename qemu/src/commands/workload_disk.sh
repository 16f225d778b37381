# The tool has made the file system's file, and answers on the network with this sequence.
numbers=$(seq 200000 | sha256sum)
mkdir -p /mnt
mke2fs /dev/vda >/dev/null 2>&1 || exit 1
mount -t ext4 /dev/vda /mnt || exit 1
cd /mnt || exit 1
round=0
end=$(($(date +%s) + @SECONDS@))
# At least once, on a host that is ever so busy.
while [ $round = 0 ] || [ "$(date +%s)" -lt "$end" ]; do
    round=$((round + 1))
    dd if=/dev/urandom of=big bs=64k count=64 conv=fsync 2>/dev/null || exit 2
    first=$(sha256sum <big)
    cp big copy
    sync
    # What is read from here on comes from the disk.
    echo 3 >/proc/sys/vm/drop_caches
    [ "$(sha256sum <copy)" = "$first" ] || exit 3
    # Small files, each of which has to be on the disk before the next one.
    for n in 1 2 3 4 5 6 7 8 9 10; do
        dd if=big of=small.$n bs=4k count=$n conv=fsync 2>/dev/null || exit 4
    done
    [ "$(nc 10.0.2.100 7 </dev/null | sha256sum)" = "$numbers" ] || exit 5
done
cd / && umount /mnt || exit 6
echo "$round rounds of work"
