// Watches the video elements of a page: which pictures of the camera (clocked.py) they show, and when.
'use strict';

class Watch {
    // frames: [milliseconds since the page was opened, number in the picture, currentTime], one for each picture on the screen.
    constructor(name) {
        this.frames = [];
        this.errors = [];
        this.waits = 0;
        this.video = document.createElement('video');
        this.video.muted = true;
        this.video.id = name;
        document.body.append(this.video);
        this.canvas = new OffscreenCanvas(1, 1).getContext('2d', {willReadFrequently: true});
        this.video.addEventListener('waiting', () => this.waits += 1);
        this.look();
    }

    look() {
        this.video.requestVideoFrameCallback((now, frame) => {
            this.frames.push([now, this.number(), frame.mediaTime]);
            this.look();
        });
    }

    // The number is in 20 blocks of one row, the lowest bit first.
    number() {
        const {videoWidth: width, videoHeight: height} = this.video;
        this.canvas.canvas.width = width;
        this.canvas.canvas.height = height;
        this.canvas.drawImage(this.video, 0, 0);
        const row = this.canvas.getImageData(0, Math.floor(height * 3 / 8), width, 1).data;
        let number = 0;
        for (let bit = 0; bit < 20; bit++)
            if (row[Math.floor((bit + 0.5) * width / 20) * 4] > 128)
                number += 1 << bit;
        return number;
    }
}
