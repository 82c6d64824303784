// Plays one body of fragmented MP4 in a video element, over Media Source Extensions, until it ends or fails.
//
// It starts near the newest media, keeps its distance, jumps over gaps, recovers from stalls, and removes what was played.

import {Latency} from "./latency.js";

// Safari on iPhones has only the managed one. Where both exist, the unmanaged one removes nothing by itself.
const Source = globalThis.MediaSource ?? globalThis.ManagedMediaSource;

const TICK_MS = 100;
const BURST_STEP_MS = 20; // A viewer first gets the group of pictures so far, in a burst. It ends when in such a time
const BURST_SPEED = 3; // no more than so many times as much media has come, or none for twice the time;
const BURST_MS = 200; // or this long after its first frame.
const KEPT_S = 30; // Media behind the playback position that is kept, and
const TRIM_S = 45; // how much is there when it is removed. A browser removes whole groups of pictures: also the one that is
// played, if it began before what is kept.
const UNREAD_BYTES = 24 << 20; // Media that waits for the browser to take it; more is a failure.
const APPEND_BYTES = 2 << 20; // The most that is appended at once.
const STALL_MS = 150; // Playback that has not moved for this long has stalled.
const STUCK_MS = 400; // So long though there is media, as at a gap that the ranges do not show: the position is moved; again
// after twice as long.
const STUCK_LIMIT = 4; // So often without success: the playback has failed.
const SEEK_MS = 15_000; // A seek takes no longer, or has failed.
const PAUSED_S = 10; // The media that may come while the browser does not play it.
const NEAR_S = 0.05; // Less media than this is none, and
const STALLED_NEAR_S = 0.2; // less than this if playback has stalled.

// Return whether browser can play a type such as video/mp4; codecs="avc1.64001f".
export function isPlayable(type) {
    return type !== "" && Source !== undefined && Source.isTypeSupported(type);
}

export class Playback {
    // The last error: "decode" or "stuck"; empty while there is none.
    problem = "";
    // How often playback has stalled since there was no media.
    stalls = 0;
    // How often it has skipped media: gaps, and when it was far behind.
    jumps = 0;

    #video;
    #type;
    #events;
    #latency;
    #source = new Source();
    #buffer = null;
    #queue = [];
    #queued = 0;
    #busy = false; // the buffer appends or removes; its own flag is reset before the event comes
    #started = false;
    #burst = null; // since when media has come, and a moment of it: {firstMs, ms, endS}
    #burstTimer = 0;
    #ticker = 0;
    #closed = false;
    #finished = false;
    #position = -1;
    #movedMs = 0;
    #stalled = false;
    #stalledMs = 0;
    #stuck = 0;
    #sought = -Infinity;
    #endS = 0; // the end of the newest media, and
    #grewMs = performance.now(); // when it changed
    #seekS = 0; // how long the last seek took
    #aborter = new AbortController();

    // events: started(), picture(), stalled(bool), failed(), blocked(), muted(). latency: a Latency, which outlives the playback.
    constructor(video, type, events, latency = new Latency()) {
        this.#video = video;
        this.#type = type;
        this.#events = events;
        this.#latency = latency;
        latency.begin();
        const {signal} = this.#aborter;
        const url = URL.createObjectURL(this.#source);
        this.#source.addEventListener("sourceopen", () => {
            URL.revokeObjectURL(url);
            this.#open();
        }, {once: true, signal});
        video.addEventListener("error", () => this.#fail("decode"), {signal});
        video.addEventListener("seeked", () => {
            this.#seekS = (performance.now() - this.#sought) / 1000;
            latency.moved();
        }, {signal});
        // A managed source does not open while the element may play elsewhere.
        video.disableRemotePlayback = true;
        video.src = url;
        video.playbackRate = 1;
        this.#ticker = setInterval(() => this.#tick(performance.now()), TICK_MS);
    }

    // Take bytes of the body.
    append(bytes) {
        if (this.#closed) {
            return;
        }
        this.#queue.push(bytes);
        this.#queued += bytes.byteLength;
        if (this.#queued > UNREAD_BYTES) {
            this.#fail("stuck");
            return;
        }
        this.#pump();
    }

    // The body has ended: what there is of it is played, and no more is missed.
    finish() {
        this.#finished = true;
    }

    // Stop. What was appended stays in the element until its next source.
    close() {
        this.#closed = true;
        this.#queue = [];
        this.#queued = 0;
        clearInterval(this.#ticker);
        clearTimeout(this.#burstTimer);
        this.#aborter.abort();
        this.#video.playbackRate = 1;
    }

    // Go to the newest media.
    jump() {
        if (this.#started && !this.#closed) {
            this.jumps += 1;
            this.#seek(this.#live());
        }
    }

    // Media ahead of the playback position, seconds.
    get aheadS() {
        const ranges = this.#ranges();
        return ranges.length === 0 ? 0 : Math.max(0, ranges.at(-1)[1] - this.#video.currentTime);
    }

    // How far playback is behind the live edge, seconds.
    get latencyS() {
        return this.#latency.behind(performance.now(), this.#video.currentTime);
    }

    // For how long no media has come that can be played.
    get barrenMs() {
        return performance.now() - this.#grewMs;
    }

    get started() {
        return this.#started;
    }

    // Whether playback waits for media.
    get isStalled() {
        return this.#stalled;
    }

    get cushionS() {
        return this.#latency.cushionS;
    }

    // Appending ---------------------------------------------------------------------------------------------------------

    #open() {
        try {
            this.#buffer = this.#source.addSourceBuffer(this.#type);
        } catch {
            this.#fail("decode");
            return;
        }
        const {signal} = this.#aborter;
        this.#buffer.addEventListener("updateend", () => this.#appended(), {signal});
        this.#buffer.addEventListener("error", () => this.#fail("decode"), {signal});
        this.#pump();
    }

    #pump() {
        const buffer = this.#buffer;
        if (this.#closed || buffer === null || this.#busy || this.#source.readyState !== "open") {
            return;
        }
        if (this.#trim(TRIM_S, KEPT_S) || this.#queue.length === 0) {
            return;
        }
        const bytes = this.#next();
        try {
            buffer.appendBuffer(bytes);
            this.#busy = true;
            this.#queue.shift();
            this.#queued -= bytes.byteLength;
        } catch (error) {
            // The browser's memory for media is full: make room, or give up.
            if (error.name === "QuotaExceededError" && this.#trim(2, 1)) {
                return;
            }
            this.#fail(error.name === "QuotaExceededError" ? "stuck" : "decode");
        }
    }

    // Join chunks of the body: fewer appends cost less. The result is the first chunk of the queue.
    #next() {
        let count = 0;
        let size = 0;
        while (count < this.#queue.length && (count === 0 || size + this.#queue[count].byteLength <= APPEND_BYTES)) {
            size += this.#queue[count].byteLength;
            count += 1;
        }
        if (count > 1) {
            const joined = new Uint8Array(size);
            let offset = 0;
            for (const chunk of this.#queue.splice(0, count)) {
                joined.set(chunk, offset);
                offset += chunk.byteLength;
            }
            this.#queue.unshift(joined);
        }
        return this.#queue[0];
    }

    #appended() {
        if (this.#closed) {
            return;
        }
        this.#busy = false;
        const nowMs = performance.now();
        const newest = this.#ranges().at(-1);
        if (newest !== undefined) {
            this.#latency.arrived(nowMs, newest[1]);
            if (newest[1] > this.#endS) {
                this.#endS = newest[1];
                this.#grewMs = nowMs;
            }
        }
        if (!this.#started && newest !== undefined) {
            this.#awaitBurst(nowMs, newest[1]);
        }
        this.#pump();
    }

    // Start when all media has come that was there before the viewer: playback is to begin near its end.
    #awaitBurst(nowMs, endS) {
        this.#burst ??= {firstMs: nowMs, ms: nowMs, endS};
        const {firstMs, ms, endS: beforeS} = this.#burst;
        clearTimeout(this.#burstTimer);
        if (nowMs - firstMs > BURST_MS || (nowMs - ms >= BURST_STEP_MS && endS - beforeS < BURST_SPEED * (nowMs - ms) / 1000)) {
            this.#start();
            return;
        }
        if (nowMs - ms >= BURST_STEP_MS) {
            this.#burst = {firstMs, ms: nowMs, endS};
        }
        this.#burstTimer = setTimeout(() => this.#start(), 2 * BURST_STEP_MS);
    }

    // Remove media that was played, except the last *keptS* seconds, if there are more than *limitS*. Return whether it does.
    #trim(limitS, keptS) {
        const ranges = this.#ranges();
        const position = this.#video.currentTime;
        if (!this.#started || ranges.length === 0 || position - ranges[0][0] < limitS) {
            return false;
        }
        this.#buffer.remove(0, position - keptS);
        this.#busy = true;
        return true;
    }

    // Playing -----------------------------------------------------------------------------------------------------------

    #start() {
        if (this.#closed || this.#started) {
            return;
        }
        this.#started = true;
        this.#seek(this.#live());
        this.#movedMs = performance.now();
        this.#events.started();
        const {signal} = this.#aborter;
        const shown = () => this.#closed || this.#events.picture();
        if (this.#video.requestVideoFrameCallback) {
            this.#video.requestVideoFrameCallback(shown);
        }
        // Streams without video have no frames.
        this.#video.addEventListener("playing", shown, {once: true, signal});
        this.play();
    }

    // Play, without sound if the browser does not allow sound before the page was clicked.
    async play() {
        const video = this.#video;
        try {
            await video.play();
        } catch (error) {
            if (this.#closed || error.name !== "NotAllowedError") {
                return;
            }
            if (!video.muted) {
                video.muted = true;
                this.#events.muted();
                this.play();
            } else {
                this.#events.blocked();
            }
        }
    }

    #tick(nowMs) {
        const video = this.#video;
        if (this.#closed || !this.#started) {
            return;
        }
        if (video.paused) {
            this.#movedMs = nowMs;
            // The browser has paused it, or waits for a click. What it holds must not grow.
            if (!video.seeking && this.#latency.isFarBehind(this.aheadS - PAUSED_S)) {
                this.#seek(this.#live());
            }
            return;
        }
        if (video.seeking) {
            if (nowMs - this.#sought > SEEK_MS && !document.hidden) {
                this.#fail("stuck");
            }
            this.#movedMs = nowMs;
            return;
        }
        const aheadS = this.aheadS;
        if (video.currentTime !== this.#position) {
            if (this.#stalled) {
                this.#latency.stalled(nowMs, (nowMs - this.#stalledMs) / 1000);
                this.#setStalled(false);
            }
            this.#position = video.currentTime;
            this.#movedMs = nowMs;
            this.#latency.sample(nowMs, aheadS);
        }
        // Once it has stalled, what is left of a range is less than it seems: durations of frames are estimates.
        const near = this.#stalled ? STALLED_NEAR_S : NEAR_S;
        const range = this.#ranges().find(([, end]) => end > video.currentTime + near);
        if (range !== undefined && range[0] > video.currentTime + NEAR_S) {
            // A gap, as where another publisher follows: nothing will fill it. More distance would not have helped.
            this.jumps += 1;
            this.#setStalled(false);
            this.#seek(range[0] + 0.001);
        } else if (this.#latency.isFarBehind(aheadS - 2 * this.#seekS)) {
            // Not where decoding from the keyframe on takes as long as what would be skipped.
            this.jump();
        } else if (nowMs - this.#movedMs > STALL_MS) {
            this.#recover(nowMs, range);
        } else {
            this.#stuck = nowMs - this.#sought > 10_000 ? 0 : this.#stuck;
            this.#setRate(this.#latency.rate);
        }
    }

    // Playback does not move: there is no media, or the browser needs help.
    #recover(nowMs, range) {
        if (range === undefined || range[1] - this.#video.currentTime < STALLED_NEAR_S) {
            if (!this.#stalled && !this.#finished) {
                this.stalls += 1;
                this.#stalledMs = this.#movedMs;
                this.#setStalled(true);
            }
        } else if (nowMs - this.#movedMs > STUCK_MS * 2 ** this.#stuck && !document.hidden) {
            this.#stuck += 1;
            this.jumps += 1;
            if (this.#stuck > STUCK_LIMIT) {
                this.#fail("stuck");
            } else {
                this.#seek(Math.max(this.#video.currentTime + 0.1, this.#live()));
            }
        }
    }

    #setStalled(stalled) {
        if (stalled !== this.#stalled) {
            this.#stalled = stalled;
            this.#events.stalled(stalled);
        }
    }

    #setRate(rate) {
        if (Math.abs(this.#video.playbackRate - rate) > 0.005) {
            this.#video.playbackRate = rate;
        }
    }

    #seek(position) {
        this.#sought = performance.now();
        this.#movedMs = this.#sought;
        this.#setRate(1);
        this.#video.currentTime = position;
    }

    // The position where playback should be.
    #live() {
        const [start, end] = this.#ranges().at(-1) ?? [this.#video.currentTime, 0];
        return Math.max(start, end - this.#latency.cushionS);
    }

    // The media that there is: [start, end], seconds.
    #ranges() {
        // The element's own ranges are those of its only buffer, and stay readable when the source has closed.
        const found = this.#video.buffered;
        return Array.from({length: found.length}, (_, index) => [found.start(index), found.end(index)]);
    }

    #fail(problem) {
        if (!this.#closed) {
            this.problem = problem;
            this.close();
            this.#events.failed();
        }
    }
}
