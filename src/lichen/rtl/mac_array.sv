// Multiply-accumulate array: PIXELS x OUTPUTS sums of LANES products per cycle, and the register
// that hands finished sums to the requantiser.
//
//   sums[p][o] = sum over beats (first .. last) and lanes i of x[p][i] * w[o][i]
//   DEPTHWISE (LANES 1): sums[p][o] = sum over beats of x[p][o] * w[o]
//
// A beat is taken whenever `valid`; it never waits. LANES + 4 cycles after the beat with `last`,
// `done` is high for one cycle and sums 0 .. SHIFT-1 (pixel-major, outputs innermost) are on
// `head`; each cycle with `next` brings the following SHIFT. All of them must be taken LANES + 1
// cycles before the next `done` (the plain face holds its sums that much earlier).
//
// Two faces, chosen by FACE:
//   "plain"   products as written: simulates several times as fast.
//   "packed"  PIXELS / 2 chains of LANES DSP48E2 per output, two 8-bit products in each: pixels
//             2k and 2k+1 share the 27-bit port, 18 bits apart, and the weight is the 18-bit port
//             (mac_chain.sv). With X_BITS 16: one product per DSP48E2.
// tests/rtl/test_mac.py holds them equal in every cycle.
module lichen_mac_array #(
    parameter int LANES = 4,     // input channels per beat: 1..4
    parameter int OUTPUTS = 4,
    parameter int PIXELS = 8,    // even where two products share a DSP
    parameter int X_BITS = 8,    // 8 or 16
    parameter bit X_SIGNED = 1'b1,
    parameter int SUM_BITS = 32,
    parameter int SHIFT = 1,     // sums on `head`; divides OUTPUTS
    parameter FACE = "plain",
    parameter bit DEPTHWISE = 1'b0,
    localparam int CHANNELS = DEPTHWISE ? OUTPUTS : LANES  // of a pixel of x
) (
    input  logic                           clk,
    input  logic                           rst,
    input  logic                           valid,
    input  logic                           first,
    input  logic                           last,
    input  logic [PIXELS*CHANNELS*X_BITS-1:0] x,  // pixel-major
    input  logic [OUTPUTS*LANES*8-1:0]     w,  // output-major
    input  logic                           next,
    output logic                           done,
    output logic [SHIFT*SUM_BITS-1:0]      head
);
  localparam int SUMS = PIXELS * OUTPUTS;
  localparam int PRODUCT_BITS = X_BITS + 8 + 3;
  localparam int DELAY = LANES + 2;  // cycles from a beat to its products' sum

  logic [SUMS*SUM_BITS-1:0] held;
  logic capture;  // the accumulators hold finished sums
  assign head = held[SHIFT*SUM_BITS-1:0];

  generate
    if (FACE == "plain") begin : plain
      logic [PIXELS*CHANNELS*X_BITS-1:0] x_now;
      logic [OUTPUTS*LANES*8-1:0] w_now;
      logic valid_now, first_now, last_now;
      logic signed [SUM_BITS-1:0] sums[SUMS];
      logic [DELAY:0] finished;

      always_ff @(posedge clk) begin
        x_now <= x;
        w_now <= w;
        valid_now <= valid;
        first_now <= first;
        last_now <= valid & last;
        finished <= rst ? '0 : {finished[DELAY-1:0], last_now};
      end
      assign capture = finished[0];
      assign done = finished[DELAY];

      for (genvar p = 0; p < PIXELS; p++) begin : pixel
        for (genvar o = 0; o < OUTPUTS; o++) begin : out
          logic signed [SUM_BITS-1:0] dot;
          always_comb begin
            dot = '0;
            for (int i = 0; i < LANES; i++) begin
              dot += SUM_BITS'($signed({
                X_SIGNED & x_now[(p*CHANNELS+(DEPTHWISE?o:i))*X_BITS+X_BITS-1],
                x_now[(p*CHANNELS+(DEPTHWISE?o:i))*X_BITS+:X_BITS]
              })) * SUM_BITS'($signed(w_now[(o*LANES+i)*8+:8]));
            end
          end
          always_ff @(posedge clk)
            if (valid_now) sums[p*OUTPUTS+o] <= (first_now ? '0 : sums[p*OUTPUTS+o]) + dot;
        end
      end

      always_ff @(posedge clk)
        if (capture)
          for (int s = 0; s < SUMS; s++) held[s*SUM_BITS+:SUM_BITS] <= sums[s];
        else if (next) held <= held >> (SHIFT * SUM_BITS);
    end else begin : packed_pairs
      logic [DELAY-1:0] valids, firsts, lasts;
      logic [1:0] finished;
      logic signed [SUM_BITS-1:0] sums[SUMS];

      always_ff @(posedge clk) begin
        valids <= rst ? '0 : {valids[DELAY-2:0], valid};
        firsts <= {firsts[DELAY-2:0], first};
        lasts <= rst ? '0 : {lasts[DELAY-2:0], valid & last};
        finished <= rst ? '0 : {finished[0], lasts[DELAY-1]};
      end
      assign capture = finished[0];
      assign done = finished[1];

      localparam int STEP = X_BITS == 8 ? 2 : 1;
      for (genvar p = 0; p < PIXELS; p += STEP) begin : pixel
        for (genvar o = 0; o < OUTPUTS; o++) begin : out
          logic signed [STEP*PRODUCT_BITS-1:0] dots;
          logic [STEP*LANES*X_BITS-1:0] operands;
          for (genvar k = 0; k < STEP; k++) begin : operand
            assign operands[k*LANES*X_BITS+:LANES*X_BITS] =
                x[((p+k)*CHANNELS+(DEPTHWISE ? o : 0))*X_BITS+:LANES*X_BITS];
          end
          lichen_mac_chain #(
              .LANES(LANES), .X_BITS(X_BITS), .X_SIGNED(X_SIGNED), .PAIR(STEP == 2),
              .OUT_BITS(PRODUCT_BITS)
          ) chain (
              .clk(clk),
              .x(operands),
              .w(w[o*LANES*8+:LANES*8]),
              .dots(dots)
          );
          for (genvar k = 0; k < STEP; k++) begin : half
            always_ff @(posedge clk)
              if (valids[DELAY-1])
                sums[(p+k)*OUTPUTS+o] <= (firsts[DELAY-1] ? '0 : sums[(p+k)*OUTPUTS+o])
                    + SUM_BITS'($signed(dots[k*PRODUCT_BITS+:PRODUCT_BITS]));
          end
        end
      end

      always_ff @(posedge clk)
        if (capture)
          for (int s = 0; s < SUMS; s++) held[s*SUM_BITS+:SUM_BITS] <= sums[s];
        else if (next) held <= held >> (SHIFT * SUM_BITS);
    end
  endgenerate
endmodule
